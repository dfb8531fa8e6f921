// The summary of all tokens of all answers.

/** Fills the section about each pair of arms, those under one arm first. */
function showSummary(report, under) {
  const section = byId("summary");
  const pairs =
    report.summary?.pairs.map((pair, index) => ({ pair, at: `/summary/pairs/${index}` })) ?? [];
  section.hidden = pairs.length === 0;
  const first = pairs.filter(({ pair }) => pair.under === under);
  const others = pairs.filter(({ pair }) => pair.under !== under);
  const cards = (list) => list.map(({ pair, at }) => pairCard(report, pair, at));
  section.replaceChildren(
    make("h2", { id: "summary-heading" }, "Shift"),
    make(
      "p",
      { class: "lead" },
      "How the tokens of one arm’s answers rank under another arm that has read the same text: " +
        "first (unshifted), second or third (marginal), lower (shifted). " +
        "KL is the mean over the tokens, in nats, over the whole vocabulary.",
    ),
    ...cards(first),
    others.length === 0
      ? ""
      : make(
          "details",
          { class: "more" },
          make("summary", {}, "The other pairs"),
          ...cards(others),
        ),
  );
}

/** One arm's answers under another. */
function pairCard(report, pair, at) {
  const arm = report.arms[pair.arm];
  const under = report.arms[pair.under];
  const shares = CLASSES.map((name) =>
    make(
      "div",
      {},
      make("dt", {}, make("i", { class: `swatch ${name}` }), name),
      make(
        "dd",
        {},
        number(pair.shares[name], "share", `${at}/shares/${name}`),
        interval(pair.interval?.[name], "share", `${at}/interval/${name}`),
      ),
    ),
  );
  const guided = [arm, under].some(({ guidance }) => guidance);
  const measure = (name, key) =>
    make(
      "div",
      {},
      make("dt", {}, name),
      make(
        "dd",
        {},
        number(pair[key], "nats", `${at}/${key}`),
        interval(pair.interval?.[key], "nats", `${at}/interval/${key}`),
      ),
    );
  return make(
    "article",
    { class: "pair", "aria-label": `${arm.id} under ${under.id}` },
    make(
      "header",
      {},
      make("h3", {}, armName(arm), make("span", { class: "quiet" }, " under "), armName(under)),
      make(
        "p",
        { class: "note" },
        number(pair.tokens, "count", `${at}/tokens`),
        " tokens",
        pair.interval
          ? [
              ", 95% intervals over ",
              number(pair.interval.prompts, "count", `${at}/interval/prompts`),
              " prompts",
            ]
          : null,
        guided ? " · measured without guidance" : null,
      ),
    ),
    shareBar(pair.shares),
    make("dl", { class: "figures" }, shares),
    make(
      "dl",
      { class: "figures" },
      measure("KL", "kl"),
      measure("KL, reverse", "kl_reverse"),
      measure("log-probability, own", "own_logprob"),
      measure(`under ${shortName(under)}`, "logprob"),
    ),
    make(
      "div",
      { class: "evidence" },
      pair.positions.length === 0
        ? null
        : make(
            "div",
            { class: "charts" },
            sharesByPosition(pair.positions),
            klByPosition(pair.positions, shortName(arm), shortName(under)),
            later("The numbers by position", () => positionsTable(pair, `${at}/positions`)),
          ),
      pair.most_shifted.length === 0 ? null : mostShifted(pair, `${at}/most_shifted`),
    ),
  );
}

/** An arm's name without its model, unless nothing remains. */
function shortName({ id, model }) {
  return (id.startsWith(model) && id.slice(model.length)) || id;
}

/** A collapsed section, whose content is made when it is first opened. */
function later(title, content) {
  const details = make("details", {}, make("summary", {}, title));
  details.addEventListener("toggle", () => details.append(content()), { once: true });
  return details;
}

function mostShifted(pair, at) {
  const rows = pair.most_shifted.map((row, index) => [
    tokenName(row.token),
    number(row.shifted, "count", `${at}/${index}/shifted`),
    number(row.count, "count", `${at}/${index}/count`),
    number(row.rank, "mean", `${at}/${index}/rank`),
    number(row.kl, "nats", `${at}/${index}/kl`),
  ]);
  return table("Most shifted tokens", ["Token", "Shifted", "Of", "Mean rank", "Mean KL"], rows);
}

function positionsTable(pair, at) {
  const formats = {
    tokens: "count",
    unshifted: "share",
    marginal: "share",
    shifted: "share",
    kl: "nats",
    kl_reverse: "nats",
    probability: "share",
  };
  const rows = pair.positions.map((row, index) => [
    String(row.position + 1),
    ...Object.entries(formats).map(([key, format]) =>
      number(row[key], format, `${at}/${index}/${key}`),
    ),
  ]);
  const columns = [
    "Position",
    "Tokens",
    "Unshifted",
    "Marginal",
    "Shifted",
    "KL",
    "Reverse",
    "Mean probability",
  ];
  return table("By place in the answer", columns, rows);
}

/** Shows the part of the shift to one arm that another arm accounts for by itself. */
function showRemoved(report) {
  const section = byId("removed");
  const list = report.summary?.removed ?? [];
  section.hidden = list.length === 0;
  const cards = list.map((row, index) => {
    const at = `/summary/removed/${index}`;
    const [arm, reference, by] = [row.arm, row.reference, row.by].map(
      (which) => report.arms[which],
    );
    return make(
      "article",
      { class: "removed" },
      make(
        "h3",
        {},
        "Of the shift from ",
        armName(reference),
        " to ",
        armName(arm),
        ", ",
        armName(by),
        " brings",
      ),
      make(
        "p",
        { class: "big" },
        number(row.share, "share", `${at}/share`),
        interval(row.interval, "share", `${at}/interval`),
      ),
      fillBar(row.share ?? 0),
      make(
        "p",
        { class: "note" },
        number(row.shifted, "count", `${at}/shifted`),
        " tokens are shifted, ",
        number(row.remaining, "count", `${at}/remaining`),
        " of them still are under ",
        armName(by),
        ". Of the KL it brings ",
        number(row.kl_share, "share", `${at}/kl_share`),
        ".",
      ),
    );
  });
  section.replaceChildren(
    make("h2", { id: "removed-heading" }, "What a third arm brings"),
    make("div", { class: "cards" }, cards),
  );
}

/** Shows the diversity of answers by temperature. */
function showSampling(report) {
  const section = byId("sampling");
  section.hidden = report.sampling.length === 0;
  const formats = {
    temperature: "plain",
    answers: "count",
    distinct: "share",
    distinct_2: "share",
    diversity: "nats",
    tokens: "mean",
    logprob: "nats",
  };
  const rows = report.sampling.map((row, index) => [
    armName(report.arms[row.arm]),
    ...Object.entries(formats).map(([key, format]) =>
      number(row[key], format, `/sampling/${index}/${key}`),
    ),
  ]);
  const columns = [
    "Arm",
    "Temperature",
    "Answers",
    "Distinct",
    "Distinct bigrams",
    "Diversity",
    "Tokens",
    "Log-probability",
  ];
  section.replaceChildren(
    make("h2", { id: "sampling-heading" }, "Sampling"),
    make(
      "p",
      { class: "lead" },
      "How the answers to one prompt differ among themselves. Diversity is 1 less the mean ROUGE-L between two answers; tokens and log-probability are means.",
    ),
    table("Answers by arm and temperature", columns, rows),
  );
}
