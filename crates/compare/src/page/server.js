// The server this page came from: its API key and its arms.

const KEY = "incant-api-key";

/** Knows the API key and the arms, and passes the arms to the panels of the tabs. */
class Server {
  #panels;
  #loaded = false;

  /** `arrived` is called once the panels have the arms. */
  constructor(arrived) {
    this.arrived = arrived;
    byId("key").value = sessionStorage.getItem(KEY) ?? "";
    byId("key-form").addEventListener("submit", (event) => event.preventDefault());
    byId("key").addEventListener("change", (event) => {
      sessionStorage.setItem(KEY, event.target.value);
      if (!this.#loaded) this.load(this.#panels);
    });
  }

  /** The entered API key; empty if there is none. */
  get key() {
    return byId("key").value;
  }

  /**
   * Requests the lists of arms and profiles, and passes them to the panels (`setModels`), or the
   * error (`showError`); entering a key then retries.
   */
  async load(panels) {
    this.#panels = panels;
    for (const panel of panels) panel.showError(null);
    try {
      const lists = ["v1/models", "v1/profiles"].map(async (path) => {
        const response = await ask(path, this.key);
        return (await response.json()).data;
      });
      const [models, profiles] = await Promise.all(lists);
      this.#loaded = true;
      for (const panel of panels) panel.setModels(models, profiles);
      this.arrived();
    } catch (error) {
      for (const panel of panels) panel.showError(error);
    }
  }

  /** Shows an error in an element, or hides it; asks for a key if one is missing. */
  showError(element, error) {
    element.hidden = error === null;
    element.textContent = error?.message ?? "";
    if (error?.status !== 401) return;
    byId("key-form").hidden = false;
    byId("key").focus();
  }
}
