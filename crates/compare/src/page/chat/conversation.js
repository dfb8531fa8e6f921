// A conversation as it is sent and stored: turns of `{ question, answer }`. An answer is
// `{ arm, profile, text, finish_reason, usage, times, state }`; its state is one of "running",
// "complete", "stopped" and "broken".

/** The storage key. Its number increases whenever the stored form changes. */
const CONVERSATION = "incant-conversation-1";

/** An answer that has not begun. */
function newAnswer(arm) {
  const times = { asked: performance.now(), first: null, last: null };
  return {
    arm,
    profile: null,
    text: "",
    finish_reason: null,
    usage: null,
    times,
    state: "running",
  };
}

/** Adds a chunk of the stream to an answer. */
function addChunk(answer, { choices, usage, profile }) {
  const { delta, finish_reason } = choices[0] ?? {};
  if (delta?.content) answer.times.first ??= performance.now();
  answer.text += delta?.content ?? "";
  if (finish_reason) {
    answer.finish_reason = finish_reason;
    answer.times.last = performance.now();
  }
  if (usage) answer.usage = usage;
  answer.profile ??= profile ?? null;
}

/** The messages of a request for the last turn's answer. */
function messagesFor(turns, system) {
  const messages = turns.flatMap(({ question, answer }) => [
    { role: "user", content: question },
    { role: "assistant", content: answer.text },
  ]);
  // The last question is the one to be answered.
  messages.pop();
  return system.trim() === "" ? messages : [{ role: "system", content: system }, ...messages];
}

/** The turns as plain text. */
function transcript(turns) {
  return turns
    .flatMap(({ question, answer }) => [`You:\n${question}`, `${answer.arm}:\n${answer.text}`])
    .join("\n\n");
}

/** Stores a conversation with the form's fields for as long as the browser tab is open. */
function keepConversation(turns, fields) {
  if (turns.length === 0) {
    sessionStorage.removeItem(CONVERSATION);
    return;
  }
  try {
    sessionStorage.setItem(CONVERSATION, JSON.stringify({ turns, fields }));
  } catch {
    // The storage is full: half a conversation would be worse than none.
    sessionStorage.removeItem(CONVERSATION);
  }
}

/** The stored conversation, or an empty one. */
function keptConversation() {
  return JSON.parse(sessionStorage.getItem(CONVERSATION)) ?? { turns: [], fields: {} };
}
