// The settings that reproduce a comparison, and buttons that save the report.

const SETTINGS = {
  seed: "Seed",
  temperature: "Temperature",
  top_p: "top_p",
  top_k: "top_k",
  min_p: "min_p",
  presence_penalty: "Presence penalty",
  frequency_penalty: "Frequency penalty",
  repetition_penalty: "Repetition penalty",
  dry_multiplier: "DRY multiplier",
  dry_base: "DRY base",
  dry_allowed_length: "DRY allowed length",
  dry_penalty_last_n: "DRY last tokens",
  top_n_sigma: "top_n_sigma",
  typical_p: "typical_p",
  xtc_probability: "XTC probability",
  xtc_threshold: "XTC threshold",
  max_tokens: "Max tokens",
  n: "Answers for each arm and temperature",
};

/** Fills the section about settings. `buttons` save the report. */
function showSettings(report, buttons) {
  const { settings, arms } = report;
  const entry = (name, ...value) => make("div", {}, make("dt", {}, name), make("dd", {}, ...value));
  // Samplers that were not requested are absent.
  const known = Object.entries(SETTINGS).filter(([key]) => settings[key] !== undefined);
  const values = known.map(([key, name]) => {
    const list = [settings[key]].flat();
    const numbers = list.map((value, index) =>
      number(value, "plain", `/settings/${key}${Array.isArray(settings[key]) ? `/${index}` : ""}`),
    );
    return entry(name, ...numbers.flatMap((one, index) => (index === 0 ? [one] : [", ", one])));
  });
  const section = byId("settings");
  section.hidden = false;
  section.replaceChildren(
    make("h2", { id: "settings-heading" }, "Settings"),
    make(
      "dl",
      { class: "settings" },
      entry(
        "Arms",
        make(
          "ul",
          {},
          arms.map((arm) => make("li", {}, armName(arm))),
        ),
      ),
      entry("Reference", armName(arms[settings.reference])),
      values,
    ),
    settings.command === null ? "" : commandBox(settings.command),
    make("p", { class: "actions" }, buttons),
  );
}

/** The command that reproduces the comparison, with a button to copy it. */
function commandBox(command) {
  const code = make("code", {}, command);
  const button = copyButton("Copy", () => command, code);
  return make("div", { class: "command" }, make("pre", { tabindex: 0 }, code), button);
}

/** The page as it was loaded, before anything was drawn into it. */
const untouched = document.documentElement.cloneNode(true);

/** The page with an embedded report, as the program itself would write it. */
function pageWith(report) {
  const page = untouched.cloneNode(true);
  const policy = page.querySelector("meta[name=report-policy]");
  policy.removeAttribute("name");
  policy.setAttribute("http-equiv", "Content-Security-Policy");
  const escapes = { "<": "\\u003c", "\u2028": "\\u2028", "\u2029": "\\u2029" };
  page.querySelector("#data").textContent = JSON.stringify(report).replace(
    /[<\u2028\u2029]/g,
    (character) => escapes[character],
  );
  return `<!doctype html>\n${page.outerHTML}`;
}

/** A button that saves the result of `content` as a file. */
function saveButton(label, name, type, content) {
  const button = make("button", { type: "button" }, label);
  button.addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([content()], { type }));
    make("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  });
  return button;
}
