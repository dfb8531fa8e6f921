// Builds elements, and formats numbers and tokens. Text from a model becomes a text node, never
// markup.

/** Makes an HTML element with attributes and children; null ones are left out. */
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Makes an SVG element. */
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

/** The element of the page with this id. */
function byId(id) {
  return document.getElementById(id);
}

const FORMATS = {
  /** A share or a probability. */
  share: (value) => (value > 0 && value < 0.0005 ? "<0.1%" : `${(100 * value).toFixed(1)}%`),
  /** A divergence or a log-probability. */
  nats: (value) =>
    value
      .toFixed(3)
      .replace(/^-(0\.0+)$/, "$1")
      .replace("-", "−"),
  mean: (value) => value.toFixed(1),
  count: (value) => value.toLocaleString("en-US"),
  plain: (value) => String(value),
};

/** A formatted number. */
function formatValue(value, format) {
  return value === null ? "–" : FORMATS[format](value);
}

/**
 * A number on the page. It carries the exact value and, if it is part of the report, its place
 * there as a JSON pointer.
 */
function number(value, format, pointer = null) {
  return make(
    "span",
    { class: "number", "data-value": value, "data-pointer": pointer },
    formatValue(value, format),
  );
}

/** An interval's two ends, or null. */
function interval(ends, format, pointer) {
  if (!ends) return null;
  const end = (which) => number(ends[which], format, `${pointer}/${which}`);
  return make("span", { class: "interval", title: "95% interval" }, end(0), " to ", end(1));
}

/** A table with a heading row. `columns` are texts, `rows` lists of cells. */
function table(caption, columns, rows) {
  const head = columns.map((column) => make("th", { scope: "col" }, column));
  const body = rows.map(([first, ...rest]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, first),
      ...rest.map((cell) => make("td", {}, cell)),
    ),
  );
  // If it is wider than the screen it scrolls by itself, by keyboard too.
  return make(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    make(
      "table",
      {},
      make("caption", {}, caption),
      make("thead", {}, make("tr", {}, head)),
      make("tbody", {}, body),
    ),
  );
}

/**
 * Other arms that influence an arm's answers, with a note that it is measured without them; or
 * null.
 */
function guidanceNote(arm, settings) {
  if (!arm.guidance) return null;
  return settings.analysis ? `${arm.guidance} · measured without guidance` : arm.guidance;
}

/**
 * An arm's name. The part that distinguishes it from the model's other arms is bold; the profile
 * that answers follows if the name has none.
 */
function armName(arm) {
  const rest = arm.id.startsWith(arm.model) ? arm.id.slice(arm.model.length) : "";
  const name =
    rest === "" ? [make("b", {}, arm.id)] : [arm.model, make("wbr"), make("b", {}, rest)];
  const profile = arm.rendered_by
    ? make("span", { class: "quiet", title: "the profile that answers" }, ` (${arm.rendered_by})`)
    : null;
  return make("span", { class: "arm" }, ...name, profile);
}

/** Text with visible spaces and line breaks. */
function visible(text) {
  const signs = { " ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥" };
  return text.replace(/[ \n\r\t]/g, (character) => signs[character]);
}

/** A token as shown in tables: with visible spaces, parts of characters as their bytes. */
function tokenName(token) {
  if (token === "") return make("i", { class: "token-name" }, "no text");
  if (/^bytes:(\\x[0-9a-f]{2})+$/.test(token)) {
    return make(
      "code",
      { class: "token-name bytes", title: "part of a character" },
      token.slice(8).replaceAll("\\x", " "),
    );
  }
  return make("code", { class: "token-name" }, visible(token));
}
