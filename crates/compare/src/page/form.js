// Functions that the forms of both tabs share, such as sending from the keyboard.

/** Whether this is an Apple device, whose keyboards have a Cmd key. */
const HAS_CMD = /^(Mac|iP)/.test(navigator.platform);

/**
 * Submits a form with Ctrl+Enter or Cmd+Enter in one of its text fields, and shows the shortcut.
 */
function sendFromKeyboard(form, texts) {
  for (const text of texts) {
    text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  }
  const keys = [HAS_CMD ? "Cmd" : "Ctrl", "Enter"].map((key) => make("kbd", {}, key));
  form.querySelector(".shortcut").replaceChildren(keys[0], "+", keys[1]);
}

/** An option of a select element. */
function option(value, text) {
  return make("option", { value }, text);
}

/** The time since `start`, for a status line. */
function secondsSince(start) {
  return `${((performance.now() - start) / 1000).toFixed(1)} s`;
}

/** A button that copies the result of `text`; without a clipboard it selects `element`. */
function copyButton(label, text, element) {
  const button = make("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      // Pages from other machines without TLS have no clipboard: one key is left to press.
      getSelection().selectAllChildren(element);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = label), 2000);
  });
  return button;
}
