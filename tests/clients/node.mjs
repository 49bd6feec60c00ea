// openai, @langchain/openai and @anthropic-ai/sdk for Node against a running server: node.mjs URL

import Anthropic from "@anthropic-ai/sdk";
import { HumanMessage, SystemMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAI as CompletionModel, OpenAIEmbeddings } from "@langchain/openai";
import assert from "node:assert/strict";
import OpenAI from "openai";
import { z } from "zod";

const url = process.argv[2];
const base = `${url}/v1`;
const hello = [{ role: "user", content: "Hello" }];
let failed = 0;

async function check(name, test) {
  try {
    console.log(`ok     ${name}: ${JSON.stringify(await test())?.slice(0, 90)}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}: ${error.constructor.name}: ${String(error.message).slice(0, 300)}`);
  }
}

const openai = new OpenAI({ baseURL: base, apiKey: "none", maxRetries: 0 });

await check("openai js: chat", async () => (await openai.chat.completions.create({ model: "m", messages: hello, max_tokens: 12 })).choices[0].message.content);
await check("openai js: stream", async () => {
  let text = "";
  for await (const chunk of await openai.chat.completions.create({ model: "m", messages: hello, max_tokens: 12, stream: true })) text += chunk.choices[0]?.delta?.content ?? "";
  assert.ok(text);
  return text;
});
await check("openai js: stream helper", async () => (await openai.chat.completions.stream({ model: "m", messages: hello, max_tokens: 12 }).finalChatCompletion()).choices[0].finish_reason);
await check("openai js: an aborted request frees its slot", async () => {
  const control = new AbortController();
  const asked = openai.chat.completions.create({ model: "m", messages: hello, max_tokens: 900, ignore_eos: true }, { signal: control.signal });
  setTimeout(() => control.abort(), 150);
  await assert.rejects(asked);
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const slots = await (await fetch(`${url}/slots`)).json();
  assert.deepEqual(slots.filter((slot) => slot.is_processing), []);
});
await check("openai js: embeddings", async () => (await openai.embeddings.create({ model: "m", input: "Hello" })).data[0].embedding.length);
await check("openai js: responses, a stream", async () => {
  const final = await openai.responses.stream({ model: "m", input: "Hello", max_output_tokens: 12 }).finalResponse();
  assert.ok(final.output_text);
  return final.output_text;
});

const options = { model: "m", apiKey: "none", maxTokens: 12, temperature: 0, maxRetries: 0, configuration: { baseURL: base } };
const chat = new ChatOpenAI(options);
await check("langchain: invoke", async () => {
  const reply = await chat.invoke([new SystemMessage("Be brief."), new HumanMessage("Hello")]);
  assert.ok(reply.usage_metadata.total_tokens > 0);
  return reply.content;
});
await check("langchain: stream", async () => {
  let text = "";
  for await (const chunk of await chat.stream("Hello")) text += chunk.content;
  assert.ok(text);
  return text;
});
await check("langchain: completion model", () => new CompletionModel(options).invoke("Once upon"));
await check("langchain: embeddings", async () => (await new OpenAIEmbeddings({ model: "m", apiKey: "none", maxRetries: 0, configuration: { baseURL: base } }).embedQuery("Hello")).length);
const responses = new ChatOpenAI({ ...options, useResponsesApi: true });
await check("langchain: responses", async () => (await responses.invoke("Hello")).text);
await check("langchain: responses, a stream", async () => {
  let text = "";
  for await (const chunk of await responses.stream("Hello")) text += chunk.text;
  assert.ok(text);
  return text;
});
const form = z.object({ title: z.string().max(30), animals: z.number().int().min(0).max(9) });
for (const method of ["jsonSchema", "functionCalling"]) {
  await check(`langchain: structured output by ${method}`, async () => form.parse(await new ChatOpenAI({ ...options, maxTokens: 120 }).withStructuredOutput(form, { name: "story", method }).invoke("Hello")));
}
const weather = tool(({ city }) => `sunny in ${city}`, { name: "weather", description: "The weather of a city", schema: z.object({ city: z.string().max(20) }) });
// Over responses LangChain sends a choice only when it names a function; "any" it leaves out.
for (const [name, useResponsesApi, tool_choice] of [["chat", false, "any"], ["responses", true, "weather"]]) {
  await check(`langchain: a tool call and its result (${name})`, async () => {
    const model = new ChatOpenAI({ ...options, maxTokens: 120, useResponsesApi });
    const able = model.bindTools([weather], { tool_choice });
    const ask = new HumanMessage("How is the weather in Oslo?");
    const call = await able.invoke([ask]);
    assert.equal(call.tool_calls[0].name, "weather");
    const result = await weather.invoke(call.tool_calls[0]);
    const reply = await model.bindTools([weather]).invoke([ask, call, result]);
    return [call.tool_calls[0].args, reply.text];
  });
}

const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
await check("anthropic js: messages", async () => (await anthropic.messages.create({ model: "m", max_tokens: 12, messages: hello })).content[0].text);
await check("anthropic js: a stream", async () => (await anthropic.messages.stream({ model: "m", max_tokens: 12, messages: hello }).finalMessage()).usage.output_tokens);

process.exit(failed ? 1 : 0);
