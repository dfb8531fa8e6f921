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
    const form = byId("chat-form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    // Opens the section of an invalid field, so that the browser can point at it.
    form.addEventListener("invalid", () => (byId("chat-more").open = true), true);
    sendFromKeyboard(form, [byId("message"), byId("chat-system")]);
    byId("chat-arm").addEventListener("change", () => this.#showArm());
    byId("chat-stop").addEventListener("click", () => this.#controller?.abort());
    byId("chat-cancel").addEventListener("click", () => this.#endEditing());
    byId("chat-clear").addEventListener("click", () => this.#clear());
    const copy = copyButton("Copy all", () => transcript(this.#turns), byId("turns"));
    byId("chat-clear").before(copy);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing || byId("chat-panel").hidden) return;
      if (this.#controller) this.#controller.abort();
      else if (this.#draft !== null) this.#endEditing();
    });
    this.#restore();
    addEventListener("pagehide", () => this.#keep());
    byId("chat-more").open = matchMedia("(min-width: 64rem)").matches;
  }

  /** Fills the list of arms. */
  setModels(models, profiles) {
    [this.#models, this.#profiles] = [models, profiles];
    const field = byId("chat-arm");
    field.replaceChildren(...models.map(({ id }) => option(id, id)));
    if (models.some(({ id }) => id === this.#keptArm)) field.value = this.#keptArm;
    this.#showArm();
  }

  /** Shows an error. */
  showError(error) {
    this.server.showError(byId("chat-problem"), error);
  }

  focus() {
    byId("message").focus();
  }

  /** Describes the chosen arm, and shows its defaults as placeholders. */
  #showArm() {
    const model = this.#models.find(({ id }) => id === byId("chat-arm").value);
    if (!model) return;
    byId("chat-about").replaceChildren(
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
    return byId("chat-form").elements.namedItem(name);
  }

  /** Whether a question can be sent: the arms are known, and no answer is running. */
  get #isReady() {
    return this.#controller === null && this.#models.length > 0;
  }

  /** Sends the question in the field. */
  async #send() {
    const question = byId("message").value;
    if (!this.#isReady) return;
    if (question.trim() === "") {
      byId("message").focus();
      return;
    }
    const isEdited = this.#draft !== null;
    const before = this.#turns;
    this.#turns = isEdited ? before.slice(0, -1) : before;
    byId("message").value = "";
    if (isEdited) this.#endEditing();
    if (await this.#answer(question)) return;
    // Nothing arrived: everything is restored, with the question before newer text in the
    // field.
    this.#turns = before;
    this.#draw();
    if (isEdited) this.#edit();
    const since = isEdited ? "" : byId("message").value;
    byId("message").value = since === "" ? question : `${question}\n${since}`;
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
    const answer = newAnswer(byId("chat-arm").value);
    this.#turns = [...this.#turns, { question, answer }];
    this.#controller = new AbortController();
    this.showError(null);
    this.#draw();
    this.#setStatus("Asking…");
    scrollTo({ top: document.documentElement.scrollHeight });
    const { signal } = this.#controller;
    let problem = null;
    try {
      await stream("v1/chat/completions", this.#request(), this.server.key, signal, (chunk) => {
        addChunk(answer, chunk);
        if (answer.text !== "") this.#setStatus("Writing…");
        this.#follow(() => this.#views.at(-1).update());
      });
      answer.state = "complete";
      this.#setStatus(`Done in ${secondsSince(answer.times.asked)}.`);
    } catch (error) {
      const isStopped = error.name === "AbortError";
      answer.state = isStopped ? "stopped" : "broken";
      this.#setStatus(isStopped ? "Stopped." : "");
      if (!isStopped) problem = error;
    } finally {
      answer.times.last ??= performance.now();
      this.#controller = null;
    }
    this.#follow(() => {
      this.showError(problem);
      this.#draw();
    });
    return answer.state === "complete" || answer.text !== "";
  }

  /** The request for the last turn's answer. */
  #request() {
    const model = byId("chat-arm").value;
    const messages = messagesFor(this.#turns, byId("chat-system").value);
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
    this.#draft ??= byId("message").value;
    this.#follow(() => {
      byId("editing").hidden = false;
      byId("message").value = this.#turns.at(-1).question;
    });
    byId("message").focus();
  }

  /** Restores the text that was in the field before editing. */
  #endEditing() {
    if (this.#draft === null) return;
    byId("message").value = this.#draft;
    this.#draft = null;
    byId("editing").hidden = true;
    byId("message").focus();
  }

  #clear() {
    this.#endEditing();
    this.#turns = [];
    this.#draw();
    this.showError(null);
    this.#setStatus("");
    byId("message").focus();
  }

  /** Draws changes, and updates the buttons. */
  #draw() {
    const isRunning = this.#controller !== null;
    const focused = document.activeElement;
    // Screen readers announce the answer once it is complete.
    byId("turns").ariaBusy = isRunning;
    this.#drawTurns();
    byId("chat-tools").hidden = this.#turns.length === 0;
    byId("chat-hint").hidden = this.#turns.length > 0;
    byId("chat-clear").disabled = isRunning;
    byId("chat-idle").hidden = isRunning;
    byId("chat-busy").hidden = !isRunning;
    // The button that was pressed may be gone; the one that replaces it gets the focus.
    if (!focused.checkVisibility()) byId(isRunning ? "chat-stop" : "send").focus();
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
    byId("turns").append(...added.map(({ element }) => element));
    this.#views = [...kept, ...added];
    this.#views.at(-1)?.update();
  }

  /** Changes the page, and keeps it scrolled to its end if it was. */
  #follow(action) {
    const page = document.documentElement;
    const isAtEnd =
      !byId("chat-panel").hidden && page.scrollHeight - innerHeight - scrollY < NEAR_END;
    action();
    if (isAtEnd) scrollTo({ top: page.scrollHeight });
  }

  #setStatus(status) {
    // The same text set again would be announced again by screen readers.
    if (byId("chat-status").textContent !== status) byId("chat-status").textContent = status;
  }

  #keep() {
    // The list of arms is empty until the server has answered.
    const fields = { arm: this.#keptArm, ...Object.fromEntries(new FormData(byId("chat-form"))) };
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
