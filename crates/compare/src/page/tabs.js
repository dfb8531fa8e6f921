// The two tabs of the live page. The URL's fragment names the current one.

/** The names of the tabs in the URL; the first one is the default. */
const TABS = ["compare", "chat"];

/** Shows one panel at a time. `shown` is called with the name of the panel that appears. */
class Tabs {
  #shown;

  constructor(shown) {
    this.#shown = shown;
    byId("tabs").hidden = false;
    byId("subject").hidden = true;
    for (const [index, name] of TABS.entries()) {
      const panel = byId(`${name}-panel`);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", `${name}-tab`);
      const tab = byId(`${name}-tab`);
      tab.addEventListener("click", () => this.#go(name));
      tab.addEventListener("keydown", (event) => this.#move(event, index));
    }
    addEventListener("hashchange", () => this.#show());
    this.#show();
  }

  /** The current tab. */
  get current() {
    const named = location.hash.slice(1);
    return TABS.includes(named) ? named : TABS[0];
  }

  #go(name) {
    // The browser's back button leads to the page before this one, not through its tabs.
    history.replaceState(null, "", `#${name}`);
    this.#show();
  }

  #move(event, index) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const last = TABS.length - 1;
    const goals = {
      ArrowLeft: index === 0 ? last : index - 1,
      ArrowRight: index === last ? 0 : index + 1,
      Home: 0,
      End: last,
    };
    const goal = TABS[goals[event.key]];
    if (goal === undefined) return;
    event.preventDefault();
    this.#go(goal);
    byId(`${goal}-tab`).focus();
  }

  #show() {
    const { current } = this;
    for (const name of TABS) {
      const tab = byId(`${name}-tab`);
      tab.setAttribute("aria-selected", name === current);
      tab.tabIndex = name === current ? 0 : -1;
      byId(`${name}-panel`).hidden = name !== current;
    }
    document.title = byId(`${current}-tab`).textContent;
    this.#shown(current);
  }
}
