// Answers side by side, each in a pane, each token in an element.

/** One answer. It may still be growing. */
class Pane {
  /** The contents of the pane: tokens that together make whole characters. */
  units = [];
  /** Times of request, first text and end; live page only. */
  times = null;
  #characters = new Characters();
  #read = 0;
  #covered = 0;
  /** Text whose tokens have not arrived yet. */
  #rest = document.createTextNode("");
  #counts = make("div", { class: "counts" });
  #facts = make("ul", { class: "facts" });

  constructor(report, answer, pointer) {
    this.report = report;
    this.answer = answer;
    this.pointer = pointer;
    const arm = report.arms[answer.arm];
    const isReference = answer.arm === report.settings.reference;
    const guidance = guidanceNote(arm, report.settings);
    this.text = make(
      "div",
      { class: "answer", role: "group", "aria-label": `Answer of ${arm.id}` },
      this.#rest,
    );
    this.element = make(
      "article",
      { class: "pane" },
      make(
        "header",
        {},
        make("h3", {}, armName(arm)),
        isReference ? make("span", { class: "badge" }, "reference") : null,
        guidance ? make("p", { class: "note guidance" }, guidance) : null,
      ),
      this.text,
      this.#counts,
      this.#facts,
    );
  }

  /** Shows data that arrived since the last call. */
  update(view) {
    const tokens = this.answer.tokens ?? [];
    for (; this.#read < tokens.length; this.#read += 1) {
      const unit = this.#characters.push(tokens[this.#read]);
      if (unit) this.#add(unit, view);
    }
    this.#rest.data = this.answer.text.slice(this.#covered);
    this.#count(view);
    this.#facts.replaceChildren(...this.#describe().map((fact) => make("li", {}, ...fact)));
  }

  /** Ends the answer: no more tokens will arrive. */
  finish(view) {
    this.update(view);
    const unit = this.#characters.flush();
    if (!unit) return;
    this.#add(unit, view);
    this.#rest.data = this.answer.text.slice(this.#covered);
  }

  /** Recolours all tokens. */
  paint(view) {
    for (const unit of this.units) this.#colour(unit, view);
    this.#count(view);
  }

  #add(unit, view) {
    unit.pane = this;
    unit.index = this.units.length;
    unit.element = make("span", { role: "button", tabindex: unit.index === 0 ? 0 : -1 }, unit.text);
    // Invisible tokens get a sign, but no text that would be copied.
    if (unit.text === "") unit.element.dataset.sign = "■";
    else if (/^\s*\n\s*$/.test(unit.text)) unit.element.dataset.sign = "↵";
    this.units.push(unit);
    this.#covered += unit.text.length;
    this.#rest.before(unit.element);
    this.#colour(unit, view);
    unitOf.set(unit.element, unit);
  }

  #colour(unit, view) {
    unit.class = classUnder(unit.tokens, view.under);
    const colour = view.colour === "class" ? (unit.class ?? "unscored") : shadeOf(unit.tokens);
    unit.element.className = `token ${colour}`;
    unit.element.setAttribute(
      "aria-label",
      `${visible(unit.text) || "no text"}, ${unit.class ?? "not scored"}`,
    );
  }

  #count({ under }) {
    const { tokens, arm } = this.answer;
    if (tokens === null) return;
    const counts = tally(tokens, under);
    if (counts === null) {
      const why =
        arm === under
          ? "What the others are held against."
          : `Not scored under ${this.report.arms[under].id}.`;
      this.#counts.replaceChildren(make("p", { class: "note" }, tokens.length > 0 ? why : ""));
      return;
    }
    const total = CLASSES.reduce((sum, name) => sum + counts[name], 0);
    const shares = Object.fromEntries(CLASSES.map((name) => [name, counts[name] / total]));
    const legend = CLASSES.map((name) =>
      make(
        "li",
        { class: name, "data-class": name },
        make("i", { class: "swatch" }),
        number(counts[name], "count"),
        ` ${name}`,
      ),
    );
    this.#counts.replaceChildren(shareBar(shares), make("ul", { class: "key" }, legend));
  }

  /** Further facts, each as nodes. */
  #describe() {
    const { usage, finish_reason } = this.answer;
    const facts = usage ? usageFacts(usage, `${this.pointer}/usage`) : [];
    if (finish_reason)
      facts.push([finish_reason === "length" ? "cut off at the limit" : "came to its end"]);
    facts.push(...paceFacts(this.times, usage));
    return facts;
  }
}

/** The unit of an element of a pane. */
const unitOf = new WeakMap();

/** The unit that is an event's target, or null. */
function unitAt(event) {
  return unitOf.get(event.target.closest?.(".token")) ?? null;
}
