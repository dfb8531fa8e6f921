// The chat tab: one arm, turn by turn.

/** The distance from the end of the page, in pixels, that still counts as at the end. */
const NEAR_END = 80;

/** The conversation, and the answer that is being generated. */
class Chat {
  #turns = [];
  #views = [];
  #models = [];
  #profiles = [];
  #controller = null;
  /** While the last question is being edited, the previous text of the field; otherwise null. */
  #draft = null;
  /** The arm that was chosen before the page was reloaded. */
  #keptArm;

  constructor(server) {
    this.server = server;
    const form = part("chat-form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    // Opens the section of an invalid field, so that the browser can point at it.
    form.addEventListener("invalid", () => (part("chat-more").open = true), true);
    sendFromKeyboard(form, [part("message"), part("chat-system")]);
    part("chat-arm").addEventListener("change", () => this.#showArm());
    part("chat-stop").addEventListener("click", () => this.#controller?.abort());
    part("chat-cancel").addEventListener("click", () => this.#endEditing());
    part("chat-clear").addEventListener("click", () => this.#clear());
    const copy = copyButton("Copy all", () => transcript(this.#turns), part("turns"));
    part("chat-clear").before(copy);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing || part("chat-panel").hidden) return;
      if (this.#controller) this.#controller.abort();
      else if (this.#draft !== null) this.#endEditing();
    });
    this.#restore();
    addEventListener("pagehide", () => this.#keep());
    part("chat-more").open = matchMedia("(min-width: 64rem)").matches;
  }

  /** Fills the list of arms. */
  welcome(models, profiles) {
    [this.#models, this.#profiles] = [models, profiles];
    const field = part("chat-arm");
    field.replaceChildren(...models.map(({ id }) => option(id, id)));
    if (models.some(({ id }) => id === this.#keptArm)) field.value = this.#keptArm;
    this.#showArm();
  }

  /** Shows an error. */
  complain(error) {
    this.server.complain(part("chat-problem"), error);
  }

  focus() {
    part("message").focus();
  }

  /** Describes the chosen arm, and shows its defaults as placeholders. */
  #showArm() {
    const model = this.#models.find(({ id }) => id === part("chat-arm").value);
    if (!model) return;
    part("chat-about").replaceChildren(
      ...aboutArm(model, this.#profiles).filter((paragraph) => paragraph !== null),
    );
    for (const [name, standard] of Object.entries(DEFAULTS)) {
      this.#field(name).placeholder = standard(model);
    }
    const guidance = this.#field("guidance");
    guidance.disabled = !canBeGuided(model);
    if (guidance.disabled) guidance.placeholder = "none";
  }

  #field(name) {
    return part("chat-form").elements.namedItem(name);
  }

  /** Whether a question can be sent: the arms are known, and no answer is running. */
  get #isReady() {
    return this.#controller === null && this.#models.length > 0;
  }

  /** Sends the question in the field. */
  async #send() {
    const question = part("message").value;
    if (!this.#isReady) return;
    if (question.trim() === "") {
      part("message").focus();
      return;
    }
    const isEdited = this.#draft !== null;
    const before = this.#turns;
    this.#turns = isEdited ? before.slice(0, -1) : before;
    part("message").value = "";
    if (isEdited) this.#endEditing();
    if (await this.#answer(question)) return;
    // Nothing arrived: everything is restored, with the question before newer text in the
    // field.
    this.#turns = before;
    this.#draw();
    if (isEdited) this.#edit();
    const since = isEdited ? "" : part("message").value;
    part("message").value = since === "" ? question : `${question}\n${since}`;
  }

  /** Sends the last question once more. */
  async #repeat() {
    if (!this.#isReady) return;
    this.#endEditing();
    const before = this.#turns;
    this.#turns = before.slice(0, -1);
    if (await this.#answer(before.at(-1).question)) return;
    this.#turns = before;
    this.#draw();
  }

  /**
   * Requests an answer to a question after the existing turns; returns whether anything arrived.
   */
  async #answer(question) {
    const answer = newAnswer(part("chat-arm").value);
    this.#turns = [...this.#turns, { question, answer }];
    this.#controller = new AbortController();
    this.complain(null);
    this.#draw();
    this.#say("Asking…");
    scrollTo({ top: document.documentElement.scrollHeight });
    const { signal } = this.#controller;
    let problem = null;
    try {
      await stream("v1/chat/completions", this.#request(), this.server.key, signal, (chunk) => {
        addChunk(answer, chunk);
        if (answer.text !== "") this.#say("Writing…");
        this.#follow(() => this.#views.at(-1).update());
      });
      answer.state = "complete";
      this.#say(`Done in ${secondsSince(answer.times.asked)}.`);
    } catch (error) {
      const isStopped = error.name === "AbortError";
      answer.state = isStopped ? "stopped" : "broken";
      this.#say(isStopped ? "Stopped." : "");
      if (!isStopped) problem = error;
    } finally {
      answer.times.last ??= performance.now();
      this.#controller = null;
    }
    this.#follow(() => {
      this.complain(problem);
      this.#draw();
    });
    return answer.state === "complete" || answer.text !== "";
  }

  /** The request for the last turn's answer. */
  #request() {
    const model = part("chat-arm").value;
    const messages = messagesFor(this.#turns, part("chat-system").value);
    const request = { model, messages, stream_options: { include_usage: true } };
    for (const name of Object.keys(DEFAULTS)) {
      const field = this.#field(name);
      if (field.value !== "" && !field.disabled) request[name] = field.valueAsNumber;
    }
    return request;
  }

  /** Puts the last question into the field. */
  #edit() {
    if (this.#controller) return;
    this.#draft ??= part("message").value;
    this.#follow(() => {
      part("editing").hidden = false;
      part("message").value = this.#turns.at(-1).question;
    });
    part("message").focus();
  }

  /** Restores the text that was in the field before editing. */
  #endEditing() {
    if (this.#draft === null) return;
    part("message").value = this.#draft;
    this.#draft = null;
    part("editing").hidden = true;
    part("message").focus();
  }

  #clear() {
    this.#endEditing();
    this.#turns = [];
    this.#draw();
    this.complain(null);
    this.#say("");
    part("message").focus();
  }

  /** Draws changes, and updates the buttons. */
  #draw() {
    const isRunning = this.#controller !== null;
    const focused = document.activeElement;
    // Screen readers announce the answer once it is complete.
    part("turns").ariaBusy = isRunning;
    this.#drawTurns();
    part("chat-tools").hidden = this.#turns.length === 0;
    part("chat-hint").hidden = this.#turns.length > 0;
    part("chat-clear").disabled = isRunning;
    part("chat-idle").hidden = isRunning;
    part("chat-busy").hidden = !isRunning;
    // The button that was pressed may be gone; the one that replaces it gets the focus.
    if (!focused.checkVisibility()) part(isRunning ? "chat-stop" : "send").focus();
    this.#keep();
  }

  /** Removes the views of turns that are gone, and adds those of new ones. */
  #drawTurns() {
    const kept = this.#views.filter(({ turn }) => this.#turns.includes(turn));
    for (const view of this.#views) if (!kept.includes(view)) view.element.remove();
    const drawn = new Set(kept.map(({ turn }) => turn));
    const added = this.#turns
      .filter((turn) => !drawn.has(turn))
      .map(
        (turn) =>
          new TurnView(
            turn,
            () => this.#edit(),
            () => this.#repeat(),
          ),
      );
    part("turns").append(...added.map(({ element }) => element));
    this.#views = [...kept, ...added];
    this.#views.at(-1)?.update();
  }

  /** Changes the page, and keeps it scrolled to its end if it was. */
  #follow(action) {
    const page = document.documentElement;
    const isAtEnd =
      !part("chat-panel").hidden && page.scrollHeight - innerHeight - scrollY < NEAR_END;
    action();
    if (isAtEnd) scrollTo({ top: page.scrollHeight });
  }

  #say(status) {
    // The same text set again would be announced again by screen readers.
    if (part("chat-status").textContent !== status) part("chat-status").textContent = status;
  }

  #keep() {
    // The list of arms is empty until the server has answered.
    const fields = { arm: this.#keptArm, ...Object.fromEntries(new FormData(part("chat-form"))) };
    keepConversation(this.#turns, fields);
  }

  /** Restores the conversation from before the page was reloaded. */
  #restore() {
    const { turns, fields } = keptConversation();
    const { arm, ...others } = fields;
    for (const [name, value] of Object.entries(others)) this.#field(name).value = value;
    this.#keptArm = arm;
    // Leaving the page stopped a running answer.
    for (const { answer } of turns) if (answer.state === "running") answer.state = "stopped";
    this.#turns = turns;
    if (turns.length > 0) this.#draw();
  }
}
