// Runs the workflows in real n8n, headless, against a running server, and says which of them did what they should.
//
//   node deploy/n8n/run.mjs --url http://127.0.0.1:8081 [--cache DIR] [--record DIR] [NAME ...]
//
// n8n 1.123.0 is installed from npm under the cache directory at the first run (1.3 GB, Node 20). Requests pass through a
// recorder; with --record their bodies are kept as files, one per request.

import { execFile, spawnSync } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const VERSION = "1.123.0";
const PLACEHOLDER = "http://bitnet:8081";
const LIMIT_MS = 300_000;

const { values: options, positionals: chosen } = parseArgs({
  allowPositionals: true,
  options: { url: { type: "string", default: "http://127.0.0.1:8081" }, cache: { type: "string" }, record: { type: "string" } },
});
const cache = path.resolve(options.cache ?? path.join(process.env.XDG_CACHE_HOME ?? path.join(os.homedir(), ".cache"), "bitnet-launch-tests", "n8n"));
const home = fs.mkdtempSync(path.join(os.tmpdir(), "bitnet-n8n-"));

/** What each workflow must end with: the node, and whether its first item will do. */
const EXPECTED = {
  completion: ["Completion", (item) => item.content.length > 0 && item.tokens_predicted > 0 && !("choices" in item)],
  chat: ["Chat", (item) => item.choices[0].message.content.length > 0 && item.usage.completion_tokens > 0],
  errorpath: ["Explain", (item) => item.code === 400 && item.why.includes("messages")],
  chatmodel: ["Basic LLM Chain", (item) => item.text.length > 0],
  responses: ["Basic LLM Chain", (item) => item.text.length > 0],
  structured: ["Read", (item) => typeof item.title === "string" && Number.isInteger(item.animals)],
  schema: ["Read", (item) => typeof item.title === "string" && Number.isInteger(item.animals)],
  parser: ["Basic LLM Chain", (item) => typeof item.output.title === "string"],
  agent: ["AI Agent", (item) => typeof item.output === "string"],
  agentresponses: ["AI Agent", (item) => typeof item.output === "string"],
};

/** What takes a model that writes the JSON it is asked for; the demo model does not. */
const NEEDS_A_REAL_MODEL = ["parser"];
const DEMO = "bitnet-demo.gguf";

function install() {
  if (fs.existsSync(path.join(cache, "node_modules", ".bin", "n8n"))) return;
  fs.mkdirSync(cache, { recursive: true });
  // Its own xlsx comes from outside npm; the version there will do.
  const manifest = { name: "n8n-for-tests", private: true, dependencies: { n8n: VERSION }, overrides: { xlsx: "0.18.5" } };
  fs.writeFileSync(path.join(cache, "package.json"), JSON.stringify(manifest));
  const done = spawnSync("npm", ["install", "--legacy-peer-deps", "--no-audit", "--no-fund"], { cwd: cache, stdio: "inherit" });
  if (done.status !== 0) throw new Error("n8n could not be installed");
}

async function n8n(...args) {
  const env = {
    ...process.env,
    N8N_USER_FOLDER: home,
    N8N_ENCRYPTION_KEY: "for-tests-only",
    N8N_DIAGNOSTICS_ENABLED: "false",
    N8N_VERSION_NOTIFICATIONS_ENABLED: "false",
    N8N_TEMPLATES_ENABLED: "false",
    N8N_RUNNERS_ENABLED: "false",
    N8N_LOG_LEVEL: "info",
    DB_SQLITE_POOL_SIZE: "1",
  };
  const binary = path.join(cache, "node_modules", ".bin", "n8n");
  const run = promisify(execFile)(binary, args, { env, timeout: LIMIT_MS, maxBuffer: 64 << 20 });
  return run.catch((error) => ({ ...error, stdout: error.stdout ?? "", stderr: error.stderr ?? String(error) }));
}

/** A server in between that notes what is asked. */
function recorder(target) {
  const seen = [];
  const server = http.createServer(async (request, reply) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    const one = { method: request.method, path: request.url, body: body.toString() };
    seen.push(one);
    const up = http.request(new URL(request.url, target), { method: request.method, headers: { ...request.headers, host: target.host } }, (answer) => {
      one.status = answer.statusCode;
      reply.writeHead(answer.statusCode, answer.headers);
      answer.pipe(reply);
    });
    up.on("error", () => reply.destroy());
    up.end(body);
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve({ server, seen, url: `http://127.0.0.1:${server.address().port}` })));
}

function readableJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** The JSON in what `execute` prints among its log. */
function outcome(stdout) {
  const from = stdout.search(/^\{/m);
  return from < 0 ? null : readableJson(stdout.slice(from, stdout.lastIndexOf("}") + 1));
}

function judge(name, result) {
  const data = result?.data?.resultData;
  if (!data) return "printed no result";
  const [node, accepts] = EXPECTED[name];
  if (data.error) return `${data.error.message} ${data.error.description ?? ""}`.trim();
  const item = data.runData?.[node]?.[0]?.data?.main?.[0]?.[0]?.json;
  if (!item) return `node ${node} gave nothing`;
  try {
    return accepts(item) ? null : `unexpected: ${JSON.stringify(item).slice(0, 300)}`;
  } catch (error) {
    return `${error.message}: ${JSON.stringify(item).slice(0, 300)}`;
  }
}

async function main() {
  install();
  const names = chosen.length ? chosen : Object.keys(EXPECTED);
  const { server, seen, url } = await recorder(new URL(options.url));
  const copy = path.join(home, "import");
  fs.mkdirSync(copy);
  const moved = (file) => fs.readFileSync(file, "utf8").replaceAll(PLACEHOLDER, url);
  for (const name of names) fs.writeFileSync(path.join(copy, `${name}.json`), moved(path.join(HERE, "workflows", `${name}.json`)));
  fs.writeFileSync(path.join(home, "credentials.json"), moved(path.join(HERE, "credentials.json")));
  for (const [what, ...args] of [["credentials", `--input=${path.join(home, "credentials.json")}`], ["workflow", "--separate", `--input=${copy}`]]) {
    const done = await n8n(`import:${what}`, ...args);
    if (!/Successfully imported/.test(done.stdout)) throw new Error(`import:${what} failed\n${done.stdout}${done.stderr}`);
  }
  const models = await (await fetch(new URL("/v1/models", options.url))).json();
  const isDemo = models.data[0].id === DEMO;
  let failed = 0;
  for (const name of names) {
    seen.length = 0;
    const done = await n8n("execute", `--id=${name}`, "--rawOutput");
    const problem = judge(name, outcome(done.stdout));
    const excused = problem && isDemo && NEEDS_A_REAL_MODEL.includes(name);
    failed += problem && !excused ? 1 : 0;
    const asked = seen.map((one) => `${one.method} ${one.path} ${one.status}`).join(", ");
    console.log(`${excused ? "model " : problem ? "FAILED" : "ok    "} ${name} (${asked})${problem ? `: ${problem}` : ""}`);
    if (options.record) {
      fs.mkdirSync(options.record, { recursive: true });
      seen.filter((one) => one.method === "POST").forEach((one, i) => {
        const kept = { from: `n8n ${VERSION}, workflow ${name}`, path: one.path, status: one.status, body: readableJson(one.body) };
        fs.writeFileSync(path.join(options.record, `n8n-${name}-${i + 1}.json`), `${JSON.stringify(kept, null, 1)}\n`);
      });
    }
  }
  server.closeAllConnections();
  server.close();
  fs.rmSync(home, { recursive: true, force: true });
  process.exitCode = failed ? 1 : 0;
}

await main();
