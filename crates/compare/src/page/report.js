// The report: read from the page, or built from the events of a stream.

/** The version of the program that made this page. */
const VERSION = document.querySelector("meta[name=generator]").content.replace(/^incant /, "");

/** The report embedded in this page; null in a live one. */
function embeddedReport() {
  const text = byId("data").textContent;
  return text === "" ? null : JSON.parse(text);
}

/** A new report from a stream's first event, with empty answers. */
function beginReport(event, messages) {
  const { arms, settings } = event.begin;
  const answers = arms.flatMap((_, arm) =>
    Array.from({ length: settings.n }, (_, index) => ({
      arm,
      index,
      temperature: settings.temperature[0],
      text: "",
      finish_reason: null,
      usage: null,
      tokens: settings.analysis ? [] : null,
    })),
  );
  const prompts = [{ messages, prompt: null, answers }];
  return {
    format: 1,
    incant: VERSION,
    created: event.created,
    settings,
    arms,
    prompts,
    summary: null,
    sampling: [],
  };
}

/** Adds a later event; returns the answer that it is about, or null. */
function addEvent(report, event) {
  if ("summary" in event) {
    report.summary = event.summary;
    return null;
  }
  const said = event.delta ?? event.tokens ?? event.end;
  const answer = report.prompts[0].answers.find(
    ({ arm, index }) => arm === said.arm && index === said.index,
  );
  if (event.delta) answer.text += said.content;
  if (event.tokens) answer.tokens.push(...said.tokens);
  if (event.end) {
    answer.finish_reason = said.finish_reason;
    answer.usage = said.usage;
  }
  return answer;
}

/** The arms under which some answer has scores. */
function scoringArms(report) {
  const arms = new Set();
  for (const { answers } of report.prompts) {
    for (const { tokens } of answers) {
      // All tokens of an answer have scores of the same arms.
      for (const score of tokens?.[0]?.scores ?? []) arms.add(score.arm);
    }
  }
  return arms;
}
