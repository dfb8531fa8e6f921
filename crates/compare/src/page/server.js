// The server this page came from: its API key and its arms.

const KEY = "incant-api-key";

/** Knows the API key and the arms, and passes the arms to the tabs, its guests. */
class Server {
  #guests;
  #loaded = false;

  /** `arrived` is called once the guests have the arms. */
  constructor(arrived) {
    this.arrived = arrived;
    part("key").value = sessionStorage.getItem(KEY) ?? "";
    part("key-form").addEventListener("submit", (event) => event.preventDefault());
    part("key").addEventListener("change", (event) => {
      sessionStorage.setItem(KEY, event.target.value);
      if (!this.#loaded) this.load(this.#guests);
    });
  }

  /** The entered API key; empty if there is none. */
  get key() {
    return part("key").value;
  }

  /**
   * Requests the lists of arms and profiles, and passes them to the guests (`welcome`), or the
   * error (`complain`); entering a key then retries.
   */
  async load(guests) {
    this.#guests = guests;
    for (const guest of guests) guest.complain(null);
    try {
      const lists = ["v1/models", "v1/profiles"].map(async (path) => {
        const response = await ask(path, this.key);
        return (await response.json()).data;
      });
      const [models, profiles] = await Promise.all(lists);
      this.#loaded = true;
      for (const guest of guests) guest.welcome(models, profiles);
      this.arrived();
    } catch (error) {
      for (const guest of guests) guest.complain(error);
    }
  }

  /** Shows an error in an element, or hides it; asks for a key if one is missing. */
  complain(element, error) {
    element.hidden = error === null;
    element.textContent = error?.message ?? "";
    if (error?.status !== 401) return;
    part("key-form").hidden = false;
    part("key").focus();
  }
}
