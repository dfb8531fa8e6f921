// Charts, drawn as SVG that stretches to its container; their labels are HTML, which does not.

/** A stacked bar of the class shares. */
function shareBar(shares) {
  const label = CLASSES.map((name) => `${formatValue(shares[name], "share")} ${name}`).join(", ");
  let left = 0;
  const parts = CLASSES.map((name) => {
    const part = draw("rect", { class: name, x: left, y: 0, width: shares[name], height: 1 });
    left += shares[name];
    return part;
  });
  return draw(
    "svg",
    {
      class: "share-bar",
      role: "img",
      "aria-label": label,
      viewBox: "0 0 1 1",
      preserveAspectRatio: "none",
    },
    parts,
  );
}

/** A bar that is filled to a share of its length. */
function fillBar(share) {
  return draw(
    "svg",
    { class: "fill-bar", "aria-hidden": "true", viewBox: "0 0 1 1", preserveAspectRatio: "none" },
    draw("rect", { class: "rail", width: 1, height: 1 }),
    draw("rect", { class: "filled", width: Math.min(Math.max(share, 0), 1), height: 1 }),
  );
}

/** Means by position, in at most `maxBins` groups of neighbours, weighted by their tokens. */
function binned(positions, maxBins = 48) {
  const width = Math.ceil(positions.length / maxBins);
  const bins = [];
  for (let start = 0; start < positions.length; start += width) {
    const group = positions.slice(start, start + width);
    const tokens = group.reduce((sum, { tokens }) => sum + tokens, 0);
    const mean = (key) => group.reduce((sum, one) => sum + one.tokens * one[key], 0) / tokens;
    const bin = { from: group[0].position, to: group.at(-1).position, tokens };
    for (const key of [...CLASSES, "kl", "kl_reverse"]) bin[key] = mean(key);
    bins.push(bin);
  }
  return bins;
}

/** The positions of a group, counted from one as readers do. */
function positionLabel({ from, to }) {
  return from === to ? `token ${from + 1}` : `tokens ${from + 1} to ${to + 1}`;
}

/** Columns of the class shares, one for each group of positions. */
function sharesByPosition(positions) {
  const bins = binned(positions);
  const columns = bins.map((bin, index) => {
    let top = 1;
    const parts = CLASSES.map((name) => {
      top -= bin[name];
      return draw("rect", { class: name, x: index + 0.06, y: top, width: 0.88, height: bin[name] });
    });
    const label = CLASSES.map((name) => `${name} ${formatValue(bin[name], "share")}`).join(", ");
    return draw("g", {}, draw("title", {}, `${positionLabel(bin)}: ${label}`), parts);
  });
  const plot = plotArea(bins.length, 1, "Shares of the classes by position", columns);
  return chart("Shares by position in the answer", ["100%", "50%", "0%"], bins, plot);
}

/** Lines of the divergence in both directions. */
function klByPosition(positions, name, other) {
  const bins = binned(positions);
  const top = niceTop(Math.max(...bins.flatMap(({ kl, kl_reverse }) => [kl, kl_reverse])));
  const line = (key) => {
    const points = bins.map((bin, index) => `${index + 0.5},${top - bin[key]}`);
    // A single point is drawn as a line of the width of its column.
    if (points.length === 1) points.unshift(`0,${top - bins[0][key]}`);
    return draw("polyline", { class: key, points: points.join(" ") });
  };
  const touch = bins.map((bin, index) => {
    const label = `${positionLabel(bin)}: ${formatValue(bin.kl, "nats")}, reverse ${formatValue(bin.kl_reverse, "nats")} nats`;
    return draw(
      "rect",
      { class: "touch", x: index, y: 0, width: 1, height: top },
      draw("title", {}, label),
    );
  });
  const plot = plotArea(bins.length, top, "KL divergence by position", [
    line("kl_reverse"),
    line("kl"),
    touch,
  ]);
  const key = make(
    "ul",
    { class: "key" },
    make("li", {}, make("i", { class: "stroke" }), `KL(${name} ‖ ${other})`),
    make("li", {}, make("i", { class: "stroke dashed" }), "reverse"),
  );
  return chart(
    "KL by position in the answer, nats",
    [top, top / 2, 0].map((value) => String(Number(value.toPrecision(3)))),
    bins,
    plot,
    key,
  );
}

/** The smallest round number that is at least a value. */
function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((top) => top >= value);
}

function plotArea(width, height, label, shapes) {
  const lines = [0, 0.5, 1].map((at) =>
    draw("line", { class: "grid", x1: 0, x2: width, y1: at * height, y2: at * height }),
  );
  const attributes = {
    class: "plot",
    role: "img",
    "aria-label": `${label}; the numbers are in the table below`,
    viewBox: `0 0 ${width} ${height}`,
  };
  return draw("svg", { ...attributes, preserveAspectRatio: "none" }, lines, shapes);
}

function chart(title, heights, bins, plot, key = null) {
  const last = bins.at(-1).to + 1;
  const ends = [1, Math.round((1 + last) / 2), last].filter(
    (value, at, all) => all.indexOf(value) === at,
  );
  return make(
    "figure",
    { class: "chart" },
    make("figcaption", {}, title, key),
    make(
      "div",
      { class: "y-axis", "aria-hidden": "true" },
      heights.map((text) => make("span", {}, text)),
    ),
    plot,
    make(
      "div",
      { class: "x-axis", "aria-hidden": "true" },
      ends.map((value) => make("span", {}, String(value))),
    ),
  );
}
