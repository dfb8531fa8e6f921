// A reader of server-sent events (SSE) from a response, and the server's errors.

const BROKEN = "The connection ended before the answer was complete.";

/** Splits text that arrives in pieces into lines. */
class Lines {
  #rest = "";

  /** The lines that this piece completes. */
  *push(text) {
    this.#rest += text;
    // A carriage return at the very end may be the first half of a line's end.
    const end = /\r\n|\n|\r(?!$)/;
    for (let found; (found = end.exec(this.#rest));) {
      yield this.#rest.slice(0, found.index);
      this.#rest = this.#rest.slice(found.index + found[0].length);
    }
  }
}

/** The data of each event of a response's body, however its chunks are split. */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const lines = new Lines();
  let data = [];
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      // The browser's message about a broken connection names no cause.
      throw error.name === "AbortError" ? error : new Error(BROKEN);
    });
    if (done) return;
    for (const line of lines.push(value)) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      if (line !== "" || data.length === 0) continue;
      yield data.join("\n");
      data = [];
    }
  }
}

/** An error response, with the server's message. */
class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Sends a request to the server this page came from; throws error responses. */
async function ask(path, key, options = {}) {
  const headers = {
    ...(key ? { authorization: `Bearer ${key}` } : {}),
    ...(options.body ? { "content-type": "application/json" } : {}),
  };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    // The browser's message about an unreachable server names no cause.
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  });
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  throw new Refusal(
    response.status,
    answer?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`,
  );
}

/** Streams the answer to a request: calls `take` with each event. Throws errors. */
async function stream(path, request, key, signal, take) {
  const response = await ask(path, key, {
    method: "POST",
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Refusal(response.status, event.error.message);
    take(event);
  }
  throw new Error(BROKEN);
}
