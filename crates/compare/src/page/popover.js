// The details of a token: the alternatives of both sides in its place.

/** Shows one unit at a time, beside it or, on narrow screens, at the bottom. */
class Popover {
  /** The unit it shows; null while it is closed. */
  unit = null;
  /** Whether it stays open when the pointer leaves. */
  pinned = false;
  #element = byId("popover");
  #timer = null;

  constructor(view) {
    this.view = view;
    this.#element.addEventListener("mouseenter", () => this.#cancel());
    this.#element.addEventListener("mouseleave", () => this.leave());
    addEventListener("scroll", () => this.#place(), { passive: true });
    addEventListener("resize", () => this.#place());
  }

  show(unit) {
    this.#cancel();
    if (this.unit === unit) return;
    this.close();
    this.unit = unit;
    unit.element.classList.add("open-details");
    unit.element.setAttribute("aria-describedby", "popover");
    this.#element.replaceChildren(
      ...unit.tokens.map((token) => tokenDetails(unit, token, this.view)),
    );
    this.#element.showPopover();
    this.#place();
  }

  /** Like `show`, and scrolls the page if the sheet of a narrow screen would cover the token. */
  reach(unit) {
    this.show(unit);
    const covered =
      unit.element.getBoundingClientRect().bottom + 16 - this.#element.getBoundingClientRect().top;
    if (this.#isSheet() && covered > 0) scrollBy(0, covered);
  }

  pin(unit) {
    this.show(unit);
    this.pinned = true;
    this.#element.classList.add("pinned");
  }

  /** Opens a moment after the pointer has entered, unless it has left by then. */
  hover(unit) {
    if (this.pinned) return;
    this.#cancel();
    this.#timer = setTimeout(() => this.show(unit), this.unit ? 40 : 120);
  }

  /**
   * Closes a moment after the pointer or the focus has left, unless the unit is pinned or focused.
   */
  leave() {
    this.#cancel();
    const held = this.pinned || this.unit?.element === document.activeElement;
    if (!held) this.#timer = setTimeout(() => this.close(), 200);
  }

  close() {
    this.#cancel();
    this.pinned = false;
    this.#element.classList.remove("pinned");
    if (!this.unit) return;
    this.unit.element.classList.remove("open-details");
    this.unit.element.removeAttribute("aria-describedby");
    this.unit = null;
    this.#element.hidePopover();
  }

  #isSheet() {
    return matchMedia("(max-width: 40rem)").matches;
  }

  #cancel() {
    clearTimeout(this.#timer);
  }

  #place() {
    if (!this.unit) return;
    const { style } = this.#element;
    // The style sheet lays a sheet along the bottom of a narrow screen.
    if (this.#isSheet()) {
      style.left = style.top = "";
      return;
    }
    // Of a token that is broken into lines, the first.
    const token =
      this.unit.element.getClientRects()[0] ?? this.unit.element.getBoundingClientRect();
    const box = this.#element.getBoundingClientRect();
    const below = token.bottom + 8;
    const above = token.top - box.height - 8;
    const lowest = innerHeight - box.height - 8;
    style.left = `${Math.max(8, Math.min(token.left - 16, document.documentElement.clientWidth - box.width - 8))}px`;
    // If it fits neither below nor above, it is placed as low as possible.
    style.top = `${below > lowest && above >= 8 ? above : Math.min(below, lowest)}px`;
  }
}

/** The details of one token. */
function tokenDetails(unit, token, view) {
  const { report, answer, pointer } = unit.pane;
  const arm = report.arms[answer.arm];
  const at = `${pointer}/tokens/${answer.tokens.indexOf(token)}`;
  const scored = token.scores.map((score, index) => ({ score, at: `${at}/scores/${index}` }));
  const against = scored.find(({ score }) => score.arm === view.under) ?? scored[0] ?? null;
  const heading = make(
    "header",
    {},
    tokenName(token.token),
    make("span", { class: "note" }, "token ", number(token.id, "plain", `${at}/id`)),
    against
      ? make(
          "span",
          { class: `chip ${against.score.class}` },
          make("i", { class: "swatch" }),
          against.score.class,
        )
      : null,
  );
  const own = [
    armName(arm),
    number(Math.exp(token.logprob), "share"),
    number(token.rank, "count", `${at}/rank`),
    "",
    "",
  ];
  const others = scored.map(({ score, at }) => [
    armName(report.arms[score.arm]),
    number(Math.exp(score.logprob), "share"),
    number(score.rank, "count", `${at}/rank`),
    number(score.kl, "nats", `${at}/kl`),
    number(score.kl_reverse, "nats", `${at}/kl_reverse`),
  ]);
  return make(
    "section",
    { class: "details" },
    heading,
    make(
      "div",
      { class: "sides" },
      alternatives(arm, token, token),
      against ? alternatives(report.arms[against.score.arm], against.score, token) : null,
    ),
    table(
      "This token under each arm",
      ["Arm", "Probability", "Rank", "KL", "reverse"],
      [own, ...others],
    ),
  );
}

/** The most probable tokens of one side, and the chosen one, whatever its rank. */
function alternatives(arm, side, chosen) {
  const isChosen = (one) =>
    one.token === chosen.token && String(one.bytes) === String(chosen.bytes);
  const list = side.top_logprobs.map((one) => ({ ...one, chosen: isChosen(one) }));
  if (!list.some((one) => one.chosen))
    list.push({ token: chosen.token, logprob: side.logprob, chosen: true, rank: side.rank });
  const rows = list.map((one) => {
    const probability = Math.exp(one.logprob);
    const name = make(
      "span",
      { class: "name" },
      tokenName(one.token),
      one.rank ? make("small", {}, ` rank ${formatValue(one.rank, "count")}`) : null,
    );
    return make(
      "li",
      { class: one.chosen ? "chosen" : null },
      name,
      fillBar(probability),
      number(probability, "share"),
    );
  });
  return make("div", { class: "side" }, make("h4", {}, armName(arm)), make("ol", {}, rows));
}
