// The compare tab: the question, the arms, and the progress of the comparison.

/** The maximum number of arms of a request. */
const MOST_ARMS = 8;

/** The form, and the running comparison. */
class Compare {
  /** The ids of the chosen arms. */
  #arms = [];
  #controller = null;

  constructor(server, view) {
    this.server = server;
    this.view = view;
    const form = part("ask");
    form.hidden = part("hint").hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
    sendFromKeyboard(form, [part("question"), part("system")]);
    part("stop").addEventListener("click", () => this.#controller?.abort());
    part("add").addEventListener("change", (event) => {
      const guidance = part("guidance");
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
  welcome(models, profiles) {
    part("add").replaceChildren(
      option("", "Add an arm…"),
      ...models.map(({ id }) => option(id, id)),
    );
    this.#choose(firstArms(models, profiles));
  }

  /** Shows an error. */
  complain(error) {
    this.server.complain(part("problem"), error);
  }

  focus() {
    part("question").focus();
  }

  #choose(arms) {
    const reference = part("reference").value;
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
    part("arms").replaceChildren(...chips);
    part("reference").replaceChildren(...[...new Set(arms)].map((id) => option(id, id)));
    if (arms.includes(reference)) part("reference").value = reference;
    part("add").value = "";
    part("add").disabled = arms.length >= MOST_ARMS;
  }

  /** The request for the form's values. */
  #request() {
    const system = part("system").value.trim();
    const messages = [{ role: "user", content: part("question").value }];
    if (system !== "") messages.unshift({ role: "system", content: system });
    const analysis = part("analysis").checked;
    const request = { arms: this.#arms, messages, reference: part("reference").value, analysis };
    if (analysis) request.top_logprobs = 10;
    request.temperature = part("temperature").valueAsNumber;
    request.max_tokens = part("most").valueAsNumber;
    if (part("seed").value !== "") request.seed = part("seed").valueAsNumber;
    return request;
  }

  async #ask() {
    if (this.#controller || this.#arms.length === 0) return;
    if (part("question").value.trim() === "") {
      part("question").focus();
      return;
    }
    this.#controller = new AbortController();
    this.complain(null);
    this.#say("Asking…", true);
    const asked = performance.now();
    const request = this.#request();
    try {
      const { signal } = this.#controller;
      await stream("v1/compare", request, this.server.key, signal, (event) =>
        this.#take(event, request, asked),
      );
      this.#say(`Done in ${secondsSince(asked)}.`, false);
    } catch (error) {
      if (error.name === "AbortError") {
        this.#say("Stopped.", false);
      } else {
        this.#say("", false);
        this.complain(error);
      }
    } finally {
      this.#controller = null;
    }
  }

  #take(event, request, asked) {
    const { view } = this;
    if (event.begin) {
      part("hint").hidden = true;
      view.show(beginReport(event, request.messages));
      for (const pane of view.panes) pane.times = { asked, first: null, last: null };
      this.#say("Writing…", true);
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

  #say(status, running) {
    part("status").textContent = status;
    part("submit").disabled = running;
    part("stop").hidden = !running;
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
