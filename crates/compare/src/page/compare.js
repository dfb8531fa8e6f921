// The compare tab: the question, the arms, and the progress of the comparison.

/** The maximum number of arms of a request. */
const MAX_ARMS = 8;

/** The form, and the running comparison. */
class Compare {
  /** The ids of the chosen arms. */
  #arms = [];
  #controller = null;

  constructor(server, view) {
    this.server = server;
    this.view = view;
    const form = byId("ask");
    form.hidden = byId("hint").hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
    sendFromKeyboard(form, [byId("question"), byId("system")]);
    byId("stop").addEventListener("click", () => this.#controller?.abort());
    byId("add").addEventListener("change", (event) => {
      const guidance = byId("guidance");
      // A value out of range keeps the arm from being added, and the browser reports why.
      if (!guidance.reportValidity()) {
        event.target.value = "";
        return;
      }
      const wish = guidance.value === "" ? "" : ` guidance=${guidance.valueAsNumber}`;
      this.#choose([...this.#arms, event.target.value + wish]);
    });
  }

  /** Initialises the form with these models. */
  setModels(models, profiles) {
    byId("add").replaceChildren(
      option("", "Add an arm…"),
      ...models.map(({ id }) => option(id, id)),
    );
    this.#choose(firstArms(models, profiles));
  }

  /** Shows an error. */
  showError(error) {
    this.server.showError(byId("problem"), error);
  }

  focus() {
    byId("question").focus();
  }

  #choose(arms) {
    const reference = byId("reference").value;
    this.#arms = arms;
    const chips = arms.map((id, index) => {
      const remove = make(
        "button",
        { type: "button", "aria-label": `Remove ${id}`, title: "Remove" },
        "×",
      );
      remove.disabled = arms.length === 1;
      remove.addEventListener("click", () =>
        this.#choose(arms.filter((_, other) => other !== index)),
      );
      return make("li", {}, make("span", {}, id), remove);
    });
    byId("arms").replaceChildren(...chips);
    byId("reference").replaceChildren(...[...new Set(arms)].map((id) => option(id, id)));
    if (arms.includes(reference)) byId("reference").value = reference;
    byId("add").value = "";
    byId("add").disabled = arms.length >= MAX_ARMS;
  }

  /** The request for the form's values. */
  #request() {
    const system = byId("system").value.trim();
    const messages = [{ role: "user", content: byId("question").value }];
    if (system !== "") messages.unshift({ role: "system", content: system });
    const analysis = byId("analysis").checked;
    const request = { arms: this.#arms, messages, reference: byId("reference").value, analysis };
    if (analysis) request.top_logprobs = 10;
    request.temperature = byId("temperature").valueAsNumber;
    request.max_tokens = byId("most").valueAsNumber;
    if (byId("seed").value !== "") request.seed = byId("seed").valueAsNumber;
    return request;
  }

  async #ask() {
    if (this.#controller || this.#arms.length === 0) return;
    if (byId("question").value.trim() === "") {
      byId("question").focus();
      return;
    }
    this.#controller = new AbortController();
    this.showError(null);
    this.#setStatus("Asking…", true);
    const asked = performance.now();
    const request = this.#request();
    try {
      const { signal } = this.#controller;
      await stream("v1/compare", request, this.server.key, signal, (event) =>
        this.#handleEvent(event, request, asked),
      );
      this.#setStatus(`Done in ${secondsSince(asked)}.`, false);
    } catch (error) {
      if (error.name === "AbortError") {
        this.#setStatus("Stopped.", false);
      } else {
        this.#setStatus("", false);
        this.showError(error);
      }
    } finally {
      this.#controller = null;
    }
  }

  #handleEvent(event, request, asked) {
    const { view } = this;
    if (event.begin) {
      byId("hint").hidden = true;
      view.show(beginReport(event, request.messages));
      for (const pane of view.panes) pane.times = { asked, first: null, last: null };
      this.#setStatus("Writing…", true);
      return;
    }
    const answer = addEvent(view.report, event);
    if (answer === null) {
      for (const pane of view.panes) pane.finish(view);
      view.summarize();
      return;
    }
    const { times } = view.panes.find((pane) => pane.answer === answer);
    if (event.delta) times.first ??= performance.now();
    if (event.end) times.last = performance.now();
    view.update(answer);
  }

  #setStatus(status, running) {
    byId("status").textContent = status;
    byId("submit").disabled = running;
    byId("stop").hidden = !running;
  }
}

/**
 * The initial arms, of the first model: without a profile, with its default profile, and its
 * adapters.
 */
function firstArms(models, profiles) {
  if (models.length === 0) return [];
  const { root } = models[0];
  // None is the default of a model that chats with its own template.
  const usual = profiles.find(({ default_for }) => default_for.includes(root))?.id ?? null;
  const ofFirst = models.filter((model) => model.root === root);
  const arms = [
    ...["base", usual].map((name) =>
      ofFirst.find(({ profile, adapter }) => profile === name && adapter === null),
    ),
    ...ofFirst.filter(({ profile, adapter }) => profile === null && adapter !== null),
  ];
  return arms
    .filter((arm) => arm !== undefined)
    .slice(0, 6)
    .map(({ id }) => id);
}
