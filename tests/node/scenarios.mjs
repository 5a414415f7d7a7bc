// node scenarios.mjs URL SCENARIO: uses the server with openai's client for Node, and prints what it got as JSON.

import OpenAI from "openai";

const [url, name] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "x", maxRetries: 0, timeout: 20_000 });
const model = "default";

const gathered = async (stream) => {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
};
const refusal = async (call) => {
  try {
    await call;
  } catch (error) {
    if (error instanceof OpenAI.APIError) {
      return { class: error.constructor.name, status: error.status, code: error.code, param: error.param };
    }
    throw error;
  }
  return null;
};

const scenarios = {
  async whole() {
    const made = await client.responses.create({ model, input: "Hi", instructions: "Be kind.", metadata: { a: "b" } });
    const found = await client.responses.retrieve(made.id);
    const items = await gathered(client.responses.inputItems.list(made.id));
    await client.responses.delete(made.id);
    return { made, found, items, deleted: await refusal(client.responses.retrieve(made.id)) };
  },

  async streamed() {
    const events = await gathered(await client.responses.create({ model, input: "Hi", stream: true }));
    const final = await client.responses.stream({ model, input: "Hi" }).finalResponse();
    return { events, accumulated: final.output_text };
  },

  async resumed() {
    const had = await gathered(await client.responses.create({ model, input: "Hi", stream: true }));
    const id = had[0].response.id;
    const whole = await gathered(await client.responses.retrieve(id, { stream: true }));
    const rests = [];
    for (const { sequence_number } of whole) {
      const stream = await client.responses.retrieve(id, { stream: true, starting_after: sequence_number });
      rests.push(await gathered(stream));
    }
    return { had, whole, rests };
  },

  async continued() {
    const first = await client.responses.create({ model, input: "My name is Ada." });
    const second = await client.responses.create({ model, input: "Who am I?", previous_response_id: first.id });
    const items = [{ role: "user", content: "I am Ada." }];
    const conversation = await client.conversations.create({ items, metadata: { topic: "names" } });
    const answer = await client.responses.create({ model, input: "And I?", conversation: conversation.id });
    const kept = await gathered(client.conversations.items.list(conversation.id, { order: "asc", limit: 2 }));
    await client.conversations.delete(conversation.id);
    return {
      second: second.output_text,
      answer: answer.output_text,
      roles: kept.map((item) => item.role),
      deleted: await refusal(client.conversations.retrieve(conversation.id)),
      unknown: await refusal(client.responses.create({ model, input: "Hi", previous_response_id: "resp_none" })),
      unsupported: await refusal(client.responses.create({ model, input: "Hi", tools: [{ type: "web_search" }] })),
    };
  },

  async cancelled() {
    const stream = await client.responses.create({ model, input: "Hi", stream: true, max_output_tokens: 8000 });
    const events = [];
    let cancelled;
    for await (const event of stream) {
      events.push(event);
      if (event.type === "response.output_text.delta" && cancelled === undefined) {
        cancelled = await client.responses.cancel(events[0].response.id);
      }
    }
    return { cancelled, last: events.at(-1) };
  },

  async chat() {
    const messages = [{ role: "user", content: "Hi" }];
    const streamed = client.chat.completions.stream({ model, messages, stream_options: { include_usage: true } });
    const { choices, usage } = await streamed.finalChatCompletion();
    return { content: choices[0].message.content, reason: choices[0].finish_reason, usage };
  },
};

console.log(JSON.stringify(await scenarios[name]()));
