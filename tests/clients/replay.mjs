// Sends the captured requests of n8n's nodes (bodies/) and their like by the real `openai` and `@langchain/openai` packages:
//   node tests/clients/replay.mjs [URL]
// Without a URL the program named by BITNET_LAUNCH (default: the debug build) is started on a free port of the loopback. The
// packages are installed under the cache directory at the first run; where npm can't, the run is skipped. Prints one line per
// request; exit code 1 if any failed.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const PACKAGES = ["openai@6", "@langchain/openai@1", "@langchain/core@1"];
const INSTALL_MS = 180_000;
const RUN_MS = 60_000;
const here = dirname(fileURLToPath(import.meta.url));

function skip(why) {
  console.log(`skipped: ${why}`);
  process.exit(0);
}

/** The folder with the packages. */
function install() {
  const cache = join(process.env.CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "bitnet-launch-tests"), "replay");
  const isThere = () => ["openai", "@langchain/openai", "@langchain/core"].every((name) => existsSync(join(cache, "node_modules", name, "package.json")));
  if (isThere()) return cache;
  if (spawnSync("npm", ["--version"]).status !== 0) skip("the clients' requests; npm is missing");
  try {
    mkdirSync(cache, { recursive: true });
    writeFileSync(join(cache, "package.json"), '{"private":true}');
  } catch (error) {
    skip(`the clients' requests; ${error.message}`);
  }
  const npm = spawnSync("npm", ["install", "--no-audit", "--no-fund", "--no-progress", "--fetch-retries=1", "--fetch-retry-mintimeout=1000", ...PACKAGES], { cwd: cache, timeout: INSTALL_MS, encoding: "utf8" });
  if (npm.status !== 0 || !isThere()) {
    rmSync(cache, { recursive: true, force: true });
    skip(`the clients' requests; npm can't install ${PACKAGES.join(", ")}: ${npm.stderr?.match(/^npm error (.*)/m)?.[1] ?? npm.error?.message ?? "no reason given"}`);
  }
  return cache;
}

/** A server of our own, once it is healthy. */
async function serve() {
  const program = process.env.BITNET_LAUNCH ?? join(process.env.CARGO_TARGET_DIR ?? join(here, "../../target"), "debug/bitnet-launch");
  const home = mkdtempSync(join(tmpdir(), "replay-"));
  const child = spawn(program, ["--host", "127.0.0.1", "--port", "0"], { cwd: home, env: { HOME: home }, stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  process.on("exit", () => {
    child.kill("SIGKILL");
    rmSync(home, { recursive: true, force: true });
  });
  child.on("error", (error) => {
    console.log(`FAILED the server does not start: ${error.message}`);
    process.exit(1);
  });
  child.on("exit", (code, signal) => {
    console.log(`FAILED the server has ended, ${signal ?? code}:\n${log}`);
    process.exit(1);
  });
  child.stderr.setEncoding("utf8").on("data", (text) => (log += text));
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    const port = log.match(/hostname: 127\.0\.0\.1, port: (\d+)/)?.[1];
    const url = `http://127.0.0.1:${port}`;
    if (port && (await fetch(`${url}/health`).catch(() => null))?.ok) return url;
  }
}

const require = createRequire(join(install(), "replay.cjs"));
const OpenAI = require("openai");
const { ChatOpenAI } = require("@langchain/openai");
const { HumanMessage, ToolMessage } = require("@langchain/core/messages");

setTimeout(() => {
  console.log(`FAILED not done after ${RUN_MS / 1000} s`);
  process.exit(1);
}, RUN_MS).unref();

const url = process.argv[2] ?? (await serve());
const client = (baseURL) => new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const openai = client(`${url}/v1`);
let failed = 0;

async function check(name, test) {
  try {
    console.log(`ok     ${name}: ${JSON.stringify(await test())?.slice(0, 90)}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}: ${error.constructor.name}: ${String(error.message).slice(0, 300)}`);
  }
}

/** What an answer says: its text, and its calls without their ids. */
const said = ({ content, tool_calls }) => [content ?? "", (tool_calls ?? []).map(({ function: { name, arguments: text } }) => [name, text])];
const saidByItems = ({ output, output_text }) => [output_text, output.filter(({ type }) => type === "function_call").map((item) => [item.name, item.arguments])];

const senders = {
  "/completion": async (body) => (await client(url).post("/completion", { body })).content,
  "/chat/completions": async (body) => said((await client(url).chat.completions.create(body)).choices[0].message),
  "/v1/chat/completions": async (body) => {
    const once = said((await openai.chat.completions.create(body)).choices[0].message);
    const streamed = await openai.chat.completions.stream({ ...body, stream: true }).finalChatCompletion();
    assert.deepEqual(said(streamed.choices[0].message), once);
    return once;
  },
  "/v1/responses": async (body) => {
    const once = saidByItems(await openai.responses.create(body));
    const streamed = await openai.responses.stream({ ...body, stream: true }).finalResponse();
    assert.deepEqual(saidByItems(streamed), once);
    return once;
  },
};

const captured = readdirSync(join(here, "bodies")).map((file) => ({ file, ...JSON.parse(readFileSync(join(here, "bodies", file))) }));
assert.ok(captured.length >= 5, "captured requests");
for (const { file, path, status, body } of captured) {
  await check(`${file} as openai sends it`, async () => {
    const sent = senders[path](body);
    if (status === 200) return sent;
    const error = await sent.then(() => assert.fail("was accepted"), (error) => error);
    assert.ok(error instanceof OpenAI.APIError && error.status === status && error.message, String(error));
    return error.message;
  });
}

// The same settings by way of LangChain, as n8n's nodes use it.
const of = (file) => captured.find((one) => one.file === file).body;
const agent = of("n8n-agent-1.json");
const form = of("n8n-structured-1.json").response_format.json_schema;
const [calculator] = agent.tools;
const question = new HumanMessage(agent.messages[0].content);
const isStory = (story) => {
  assert.deepEqual(Object.keys(story).sort(), ["animals", "title"]);
  assert.ok(Number.isInteger(story.animals) && story.title.length <= 40);
  return story;
};

for (const [way, useResponsesApi] of [["chat", false], ["responses", true]]) {
  const model = new ChatOpenAI({ model: "bitnet", apiKey: "none", maxTokens: 160, temperature: 0, maxRetries: 0, useResponsesApi, configuration: { baseURL: `${url}/v1` } });
  await check(`langchain over ${way}: an answer and the same as a stream`, async () => {
    const once = (await model.invoke([question])).text;
    let streamed = "";
    for await (const chunk of await model.stream([question])) streamed += chunk.text;
    assert.ok(once);
    assert.equal(streamed, once);
    return once;
  });
  // Over responses LangChain sends a choice only when it names a function.
  await check(`langchain over ${way}: a forced call, its result, the answer`, async () => {
    const bounded = structuredClone(calculator);
    bounded.function.parameters.properties.input.maxLength = 20;
    bounded.function.parameters.required = ["input"];
    const able = model.bindTools([bounded], { tool_choice: useResponsesApi ? "Calculator" : "any", parallel_tool_calls: false });
    const reply = await able.invoke([question]);
    const [call] = reply.tool_calls;
    assert.equal(call?.name, "Calculator");
    assert.match(call.id, /^call_/);
    assert.deepEqual(Object.keys(call.args), ["input"]);
    let streamed;
    for await (const chunk of await able.stream([question])) streamed = streamed?.concat(chunk) ?? chunk;
    assert.deepEqual(streamed.tool_calls.map(({ name, args }) => [name, args]), [[call.name, call.args]]);
    const result = new ToolMessage({ content: "12", tool_call_id: call.id });
    return [call.args, (await model.bindTools([bounded]).invoke([question, reply, result])).text];
  });
  for (const method of ["jsonSchema", "functionCalling"]) {
    // The second forces a call by name, which both ways send.
    await check(`langchain over ${way}: an answer of a given form by ${method}`, async () => isStory(await model.withStructuredOutput(form.schema, { name: form.name, method, strict: true }).invoke([question])));
  }
}

process.exit(failed ? 1 : 0);
