// Pointer and keyboard control of tokens. One token of each pane can be reached with Tab; arrow
// keys move on from there.

/** Moves the focus to a unit, which opens its details. */
function focusUnit(unit) {
  if (!unit) return;
  for (const other of unit.pane.units) other.element.tabIndex = other === unit ? 0 : -1;
  unit.element.focus();
}

/** The unit at this index of a pane above or below, or its last one. */
function neighbour(view, unit, step) {
  const panes = view.panes.filter((pane) => pane.units.length > 0);
  const pane = panes[panes.indexOf(unit.pane) + step];
  return pane?.units[Math.min(unit.index, pane.units.length - 1)];
}

/** The next (or previous) shifted unit from the focused one, across all panes in order. */
function nextShifted(view, step) {
  const units = view.panes.flatMap((pane) => pane.units);
  const here = units.indexOf(unitOf.get(document.activeElement));
  // Without a focus, the search begins at the first or goes backwards from the last.
  const start = here < 0 && step < 0 ? units.length : here;
  const order = units.map(
    (_, index) => units[(start + step * (index + 1) + 2 * units.length) % units.length],
  );
  return order.find((unit) => unit.class === "shifted");
}

/** Registers listeners for the pointer, the focus and the keys. */
function listen(view, popover) {
  const panes = byId("panes");
  let lastKey = -Infinity;
  panes.addEventListener("mouseover", (event) => {
    // A key that scrolls the page moves it below a resting pointer, which does not point at
    // anything.
    if (event.timeStamp - lastKey < 500) return;
    const unit = unitAt(event);
    if (unit) popover.hover(unit);
    else popover.leave();
  });
  panes.addEventListener("mouseleave", () => popover.leave());
  panes.addEventListener("focusin", (event) => {
    const unit = unitAt(event);
    if (!unit || popover.unit === unit) return;
    popover.close();
    popover.reach(unit);
  });
  panes.addEventListener("focusout", () => popover.leave());
  panes.addEventListener("click", (event) => {
    const unit = unitAt(event);
    if (!unit) return;
    focusUnit(unit);
    popover.pin(unit);
  });
  document.addEventListener("click", (event) => {
    if (popover.pinned && !event.target.closest("#popover, #panes .token")) popover.close();
  });
  document.addEventListener("keydown", (event) => {
    lastKey = event.timeStamp;
    if (event.ctrlKey || event.metaKey || event.altKey || byId("compare-panel").hidden) return;
    if (event.key === "Escape") popover.close();
    else if (!event.target.closest("input, textarea, select") && press(event, view, popover))
      event.preventDefault();
  });
}

/** Handles a key; returns whether it has a function. */
function press(event, view, popover) {
  const unit = unitOf.get(event.target);
  const within = (index) => focusUnit(unit.pane.units[index]);
  const keys = {
    n: () => focusUnit(nextShifted(view, 1)),
    p: () => focusUnit(nextShifted(view, -1)),
    "[": () => view.turn(-1),
    "]": () => view.turn(1),
  };
  const keysOfToken = {
    ArrowLeft: () => within(unit.index - 1),
    ArrowRight: () => within(unit.index + 1),
    Home: () => within(0),
    End: () => within(unit.pane.units.length - 1),
    ArrowUp: () => focusUnit(neighbour(view, unit, -1)),
    ArrowDown: () => focusUnit(neighbour(view, unit, 1)),
    Enter: () => popover.pin(unit),
    " ": () => popover.pin(unit),
  };
  const action = keys[event.key] ?? (unit && keysOfToken[event.key]);
  action?.();
  return Boolean(action);
}
