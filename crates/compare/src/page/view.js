// The part of the page that shows a report: one question, its answers, their colours.

/** The view of a report: its current question and colours. */
class View {
  report = null;
  /** The question's index in the report. */
  prompt = 0;
  /** The arm under which tokens are classed. */
  under = 0;
  /** "class" or "probability". */
  colour = "class";
  panes = [];
  #popover = new Popover(this);

  constructor() {
    listen(this, this.#popover);
    byId("prompt").addEventListener("change", (event) => this.go(Number(event.target.value)));
    byId("previous").addEventListener("click", () => this.turn(-1));
    byId("next").addEventListener("click", () => this.turn(1));
    byId("answer").addEventListener("change", () => this.#layPanes());
    byId("under").addEventListener("change", (event) =>
      this.#classUnder(Number(event.target.value)),
    );
    byId("colour").addEventListener("change", (event) => {
      this.colour = event.target.value;
      this.#paint();
    });
  }

  /** Closes the popover. */
  rest() {
    this.#popover.close();
  }

  /** Shows a report, which may still be empty. */
  show(report) {
    this.report = report;
    this.under = report.settings.reference;
    byId("report").hidden = false;
    const { analysis } = report.settings;
    for (const id of ["under-field", "colour-field", "legend", "keys"]) byId(id).hidden = !analysis;
    byId("under").replaceChildren(...report.arms.map((arm, index) => option(index, arm.id)));
    byId("under").value = this.under;
    byId("prompts").hidden = report.prompts.length < 2;
    byId("prompt").replaceChildren(
      ...report.prompts.map((prompt, index) => option(index, `${index + 1}. ${shortened(prompt)}`)),
    );
    byId("answer-field").hidden = this.#rounds().length < 2;
    byId("answer").replaceChildren(...this.#rounds().map((round, index) => option(index, round)));
    this.go(0);
    this.summarize();
  }

  /** Shows the sections below the answers. */
  summarize() {
    const { report } = this;
    const answers = report.prompts.flatMap((prompt) => prompt.answers);
    const complete = answers.every((answer) => answer.finish_reason !== null);
    const scoring = scoringArms(report);
    for (const entry of byId("under").options)
      entry.disabled = complete && !scoring.has(Number(entry.value));
    showSummary(report, this.under);
    showRemoved(report);
    showSampling(report);
    const json = saveButton("Save as JSON", "compare.json", "application/json", () =>
      JSON.stringify(report),
    );
    const html = saveButton("Save as HTML", "compare.html", "text/html", () => pageWith(report));
    // A report on disk is already the file that would be saved; an unfinished one cannot be
    // saved.
    if (complete) showSettings(report, embeddedReport() ? [json] : [html, json]);
    else byId("settings").hidden = true;
  }

  /** Shows a question. */
  go(prompt) {
    this.prompt = prompt;
    byId("prompt").value = prompt;
    byId("previous").disabled = prompt === 0;
    byId("next").disabled = prompt === this.report.prompts.length - 1;
    byId("prompt-heading").textContent =
      this.report.prompts.length < 2
        ? "Question"
        : `Question ${prompt + 1} of ${this.report.prompts.length}`;
    byId("messages").replaceChildren(...messagesOf(this.report.prompts[prompt]));
    this.#layPanes();
  }

  /** Moves by some questions, if there is one there. */
  turn(step) {
    const prompt = this.prompt + step;
    if (this.report?.prompts[prompt]) this.go(prompt);
  }

  /** Shows an answer's new data. */
  update(answer) {
    this.panes.find((pane) => pane.answer === answer)?.update(this);
  }

  /** The temperatures and repetitions: each has one answer of each arm. */
  #rounds() {
    const { temperature, n } = this.report.settings;
    return temperature.flatMap((degree) =>
      Array.from(
        { length: n },
        (_, index) => `temperature ${degree}${n > 1 ? `, ${index + 1} of ${n}` : ""}`,
      ),
    );
  }

  #layPanes() {
    this.#popover.close();
    const { answers } = this.report.prompts[this.prompt];
    const rounds = this.#rounds().length;
    const round = Number(byId("answer").value);
    // Answers are ordered by arm, each with all rounds.
    this.panes = this.report.arms.map((_, arm) => {
      const place = arm * rounds + round;
      return new Pane(this.report, answers[place], `/prompts/${this.prompt}/answers/${place}`);
    });
    for (const pane of this.panes) {
      if (pane.answer.finish_reason === null) pane.update(this);
      else pane.finish(this);
    }
    byId("panes").replaceChildren(...this.panes.map((pane) => pane.element));
    this.#paint();
  }

  #classUnder(arm) {
    this.under = arm;
    this.#paint();
    showSummary(this.report, arm);
  }

  #paint() {
    this.#popover.close();
    for (const pane of this.panes) pane.paint(this);
    const classes = CLASSES.map((name) => ({ name, word: name, meaning: ` ${MEANINGS[name]}` }));
    const shades = SHADES.map(({ name, meaning }) => ({ name, word: meaning, meaning: "" }));
    const entries = this.colour === "class" ? classes : shades;
    const example = ({ name, word, meaning }) =>
      make("li", {}, make("span", { class: `token ${name}` }, word), meaning);
    byId("legend").replaceChildren(...entries.map(example));
  }
}

/** A question's beginning, in one line. */
function shortened({ messages, prompt }) {
  const text =
    (messages ? messages.findLast(({ role }) => role === "user")?.content : prompt) ?? "";
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

/** The conversation, or the text that was continued. */
function messagesOf({ messages, prompt }) {
  if (messages === null) return [make("pre", { class: "message verbatim" }, prompt)];
  const alone = messages.length === 1;
  return messages.map(({ role, content }) =>
    make(
      "div",
      { class: `message ${role}` },
      alone ? null : make("span", { class: "role" }, role),
      make("p", {}, content),
    ),
  );
}
