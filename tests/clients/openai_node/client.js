// The official openai client for Node against a running server.
//
//     node client.js BASE_URL BASE_ARM URIAL_ARM
//
// BASE_URL is without `/v1`. Install the client first: `npm install`, here.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, base, urial] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const request = {
  model: urial,
  messages: [{ role: "user", content: "What is the capital of France?" }],
  max_tokens: 12,
  temperature: 0,
};

const arms = [];
for await (const model of client.models.list()) arms.push(model.id);
assert(arms.includes(urial), arms.join());

const whole = await client.chat.completions.create(request);
const text = whole.choices[0].message.content;
assert(text.length > 0 && whole.usage.completion_tokens > 0, JSON.stringify(whole));

let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
  streamed += chunk.choices[0].delta.content ?? "";
}
assert.equal(streamed, text);

// The client's stream accumulator.
const final = await client.chat.completions.stream(request).finalChatCompletion();
assert.equal(final.choices[0].message.content, text);

const completion = await client.completions.create({ model: base, prompt: "The quick brown fox", max_tokens: 4 });
assert(completion.choices[0].text.length > 0, JSON.stringify(completion));

await assert.rejects(client.chat.completions.create({ ...request, temperature: 3 }), (error) => {
  assert(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "temperature");
  return true;
});
await assert.rejects(client.chat.completions.create({ ...request, model: "no-such-model" }), OpenAI.NotFoundError);

console.log(`openai for Node: ${JSON.stringify(text)}`);
