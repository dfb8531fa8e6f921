// Tokens: their ranks under other arms, and the characters they make together.

/** Shift classes, from tokens the other arm would generate anyway to those it would not. */
const CLASSES = ["unshifted", "marginal", "shifted"];

/** The meanings of the classes, for the legend. */
const MEANINGS = {
  unshifted: "ranked first",
  marginal: "ranked second or third",
  shifted: "ranked lower",
};

/** Lower bounds of the shades for own probability, and their names. */
const SHADES = [
  { name: "sure", from: 0.9, meaning: "90% and more" },
  { name: "likely", from: 0.5, meaning: "50 to 90%" },
  { name: "open", from: 0.2, meaning: "20 to 50%" },
  { name: "unlikely", from: 0.05, meaning: "5 to 20%" },
  { name: "rare", from: 0, meaning: "less than 5%" },
];

/** An arm's score of a token that another generated, or null. */
function scoreUnder(token, arm) {
  return token.scores.find((score) => score.arm === arm) ?? null;
}

/** The number of an answer's tokens in each class under an arm; null if none is scored. */
function tally(tokens, under) {
  const classes = tokens.map((token) => scoreUnder(token, under)?.class).filter(Boolean);
  if (classes.length === 0) return null;
  return Object.fromEntries(
    CLASSES.map((name) => [name, classes.filter((other) => other === name).length]),
  );
}

/**
 * Of several tokens that make one character, the class that is furthest from the arm's own choice.
 */
function classUnder(tokens, under) {
  const ranks = tokens.map((token) => CLASSES.indexOf(scoreUnder(token, under)?.class));
  return CLASSES[Math.max(...ranks)] ?? null;
}

/** The shade of the least probable of some tokens. */
function shadeOf(tokens) {
  const probability = Math.exp(Math.min(...tokens.map((token) => token.logprob)));
  return SHADES.find((shade) => probability >= shade.from).name;
}

/**
 * Gathers tokens until they end where a character does. A model may spell one character with
 * several tokens, and none of them can be shown alone.
 */
class Characters {
  #tokens = [];

  /** Takes the next token; returns the unit that it completes, or null. */
  push(token) {
    this.#tokens.push(token);
    return cutOff(this.#bytes()) ? null : this.flush();
  }

  /** The unit gathered so far, without an incomplete character; or null. */
  flush() {
    if (this.#tokens.length === 0) return null;
    // To a streaming decoder, the beginning of a character is not an error.
    const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(
      Uint8Array.from(this.#bytes()),
      { stream: true },
    );
    const unit = { tokens: this.#tokens, text };
    this.#tokens = [];
    return unit;
  }

  #bytes() {
    return this.#tokens.flatMap((token) => token.bytes);
  }
}

/** Whether some bytes end within a UTF-8 character. */
function cutOff(bytes) {
  const back = bytes
    .slice(-3)
    .reverse()
    .findIndex((byte) => byte >= 0xc0);
  if (back < 0) return false;
  // All bytes after the lead byte must be continuation bytes.
  const tail = bytes.slice(bytes.length - back);
  if (tail.some((byte) => byte < 0x80)) return false;
  const lead = bytes[bytes.length - 1 - back];
  const length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  return back + 1 < length;
}
