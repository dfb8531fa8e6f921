// The server this page came from: the key that it is asked with, and the arms that it has.

const KEY = "incant-api-key";

/** Knows the key and the arms, and tells the tabs, its guests, about them. */
class Server {
  #guests;
  #loaded = false;

  /** `arrived` is called once the guests know the arms. */
  constructor(arrived) {
    this.arrived = arrived;
    part("key").value = sessionStorage.getItem(KEY) ?? "";
    part("key-form").addEventListener("submit", (event) => event.preventDefault());
    part("key").addEventListener("change", (event) => {
      sessionStorage.setItem(KEY, event.target.value);
      if (!this.#loaded) this.load(this.#guests);
    });
  }

  /** The key that was typed; empty if none was. */
  get key() {
    return part("key").value;
  }

  /**
   * Asks which arms and profiles there are. The guests are told (`welcome`), or why that is
   * not known (`complain`); a key that is typed then tries again.
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

  /** Says in an element what went wrong, or nothing; asks for a key where one is missing. */
  complain(element, error) {
    element.hidden = error === null;
    element.textContent = error?.message ?? "";
    if (error?.status !== 401) return;
    part("key-form").hidden = false;
    part("key").focus();
  }
}
