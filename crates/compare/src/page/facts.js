// Facts about an answer beside its text. Each fact is a list of nodes.

/** Token usage; `pointer` is the usage's place in the report, if there is one. */
function usageFacts(usage, pointer = null) {
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const count = (value, name) =>
    number(value, "count", pointer === null ? null : `${pointer}/${name}`);
  return [
    [count(usage.completion_tokens, "completion_tokens"), " tokens"],
    [
      "prompt ",
      count(usage.prompt_tokens, "prompt_tokens"),
      ", ",
      count(cached, "prompt_tokens_details/cached_tokens"),
      " of them cached",
    ],
  ];
}

/** Speed: `times` has the times of request, first token and end, in milliseconds. */
function paceFacts(times, usage) {
  if (!times?.first) return [];
  const facts = [[number(Math.round(times.first - times.asked), "count"), " ms to the first"]];
  const seconds = (times.last - times.first) / 1000;
  if (usage?.completion_tokens > 1 && seconds > 0) {
    facts.push([number((usage.completion_tokens - 1) / seconds, "mean"), " tokens/s"]);
  }
  return facts;
}
