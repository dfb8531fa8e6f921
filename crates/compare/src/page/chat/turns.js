// Turns on the page.

/** Reasons why an answer is incomplete. */
const ENDINGS = {
  length: "cut off at the limit",
  stopped: "stopped",
  broken: "broken off",
};

/** A question and its answer, which may still be growing. */
class TurnView {
  #text = document.createTextNode("");
  #arm = make("h3", {});
  #facts = make("ul", { class: "facts" });

  /** `edit` and `repeat` are the actions of buttons that only the last turn has. */
  constructor(turn, edit, repeat) {
    this.turn = turn;
    const answer = make("div", { class: "answer" }, this.#text);
    const button = (label, title, action) => {
      const element = make("button", { type: "button", class: "of-last", title }, label);
      element.addEventListener("click", action);
      return element;
    };
    const again = "Asks again; at temperature 0, or with the same seed, the answer is the same";
    this.element = make(
      "article",
      { class: "turn" },
      make(
        "header",
        {},
        make("h3", {}, "You"),
        button("Edit", "Edits the question and asks again", edit),
      ),
      make("div", { class: "asked" }, turn.question),
      this.#arm,
      answer,
      this.#facts,
      make(
        "p",
        { class: "actions" },
        copyButton("Copy", () => turn.answer.text, answer),
        button("Regenerate", again, repeat),
      ),
    );
    this.update();
  }

  /** Shows data that has arrived. */
  update() {
    const { arm, profile, text, state } = this.turn.answer;
    const isNamed = arm.includes("@") || profile === null;
    this.#arm.replaceChildren(
      arm,
      isNamed ? "" : make("span", { class: "quiet" }, ` (${profile})`),
    );
    this.#text.data = text;
    this.element.classList.toggle("running", state === "running");
    this.#facts.replaceChildren(...this.#describe().map((fact) => make("li", {}, ...fact)));
  }

  #describe() {
    const { text, usage, times, finish_reason, state } = this.turn.answer;
    if (state === "running") return [];
    const end = state === "complete" ? finish_reason : state;
    const facts = text === "" ? [["no text"]] : [];
    if (end !== "stop") facts.push([ENDINGS[end] ?? end]);
    if (usage) facts.push(...usageFacts(usage));
    facts.push(...paceFacts(times, usage));
    return facts;
  }
}
