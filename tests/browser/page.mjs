// A person uses the page in a real browser against the real program. Started by run.sh; prints one line per test.
//
// Needs BITNET_LAUNCH (the program), CHROMIUM (the browser) and PLAYWRIGHT (the folder of playwright-core). With SHOTS set to a
// folder, pictures of the page are left there.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import readline from "node:readline";

const { BITNET_LAUNCH, CHROMIUM, PLAYWRIGHT, SHOTS } = process.env;
const { chromium } = createRequire(path.join(PLAYWRIGHT, "package.json"))("playwright-core");
const PATIENCE_MS = 60_000;
const CUT_AFTER_MS = 500;
const STORY = "Tell me a story about a fox.";

// The program

async function launch(...args) {
  const child = spawn(BITNET_LAUNCH, ["--host", "127.0.0.1", "--port", "0", ...args], { stdio: ["ignore", "ignore", "pipe"], env: {} });
  const lines = readline.createInterface({ input: child.stderr });
  const log = [];
  const port = await new Promise((resolve, reject) => {
    lines.on("line", (line) => {
      log.push(line);
      const found = /HTTP server is listening, hostname: 127.0.0.1, port: (\d+)/.exec(line);
      if (found) resolve(Number(found[1]));
    });
    child.on("exit", () => reject(new Error(log.join("\n"))));
  });
  return { url: `http://127.0.0.1:${port}/`, port, stop: () => child.kill("SIGKILL") };
}

/** Between page and program: cuts the connection of an answer after some bytes when told to. */
async function between(port) {
  const state = { cutAfter: 0, requests: [] };
  const server = http.createServer((request, reply) => {
    const up = http.request({ host: "127.0.0.1", port, path: request.url, method: request.method, headers: request.headers }, (answer) => {
      reply.writeHead(answer.statusCode, answer.headers);
      let bytes = 0;
      let cut = false;
      answer.on("data", (chunk) => {
        if (cut) return;
        bytes += chunk.length;
        reply.write(chunk);
        if (state.cutAfter && request.url.includes("completions") && bytes > state.cutAfter) {
          cut = true;
          state.cutAfter = 0;
          // What was written so far gets through first.
          setTimeout(() => reply.destroy(), CUT_AFTER_MS);
          up.destroy();
        }
      });
      answer.on("end", () => reply.end());
    });
    up.on("error", () => setTimeout(() => reply.destroy(), CUT_AFTER_MS));
    reply.on("close", () => up.destroy());
    const body = [];
    request.on("data", (chunk) => body.push(chunk));
    request.on("end", () => {
      if (request.url.includes("completions")) state.requests.push(JSON.parse(Buffer.concat(body)));
      up.end(Buffer.concat(body));
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  state.url = `http://127.0.0.1:${server.address().port}/`;
  state.stop = () => {
    server.closeAllConnections();
    server.close();
  };
  return state;
}

// The person

const DESK = { viewport: { width: 1360, height: 860 }, colorScheme: "light" };
const PHONE = { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2, colorScheme: "light" };
const problems = [];

async function visit(url, options = DESK) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => {
    if (/Content Security Policy|Refused to/.test(message.text())) problems.push(message.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) problems.push(`asked elsewhere: ${request.url()}`);
  });
  await page.goto(url);
  return page;
}

const ready = (page) => page.locator("#state .dot.ready").waitFor();
const answered = (page) => page.locator("#send").waitFor({ state: "visible" });
const answer = (page) => page.locator("article.answer").last();
const words = async (page) => (await answer(page).locator(".prose").innerText()).trim();

async function ask(page, text) {
  await page.getByRole("textbox", { name: "Message", exact: true }).fill(text);
  await page.keyboard.press("Enter");
}

/** Answers long enough to be stopped: no end token in the demo model's stories before the limit. */
async function settings(page, values) {
  await page.getByRole("button", { name: "Settings of this conversation" }).click();
  for (const [label, value] of Object.entries(values)) await page.getByLabel(label, { exact: true }).fill(value);
  await page.getByRole("dialog").getByRole("button", { name: "Done" }).click();
}

async function shot(page, name) {
  if (SHOTS) await page.screenshot({ path: path.join(SHOTS, `${name}.png`) });
}

// What must work

const tests = {
  async "a question is answered word by word, and is there after a reload"({ url }) {
    const page = await visit(url);
    await ready(page);
    await shot(page, "welcome");
    await settings(page, { Temperature: "0" });
    await ask(page, STORY);
    await answered(page);
    const text = await words(page);
    assert.ok(text.length > 40, text);
    assert.match(await answer(page).locator(".meta").innerText(), /\d+ tokens · .*tok\/s · first after/);
    assert.equal(await page.locator("#announce").innerText(), text.slice(0, 2000));
    await shot(page, "answer");
    await page.reload();
    assert.equal(await words(page), text);
    assert.match(await page.title(), /fox/);
    await page.getByRole("button", { name: "New conversation" }).click();
    await page.locator(".welcome").waitFor();
    await page.getByRole("button", { name: STORY, exact: true }).first().click();
    assert.equal(await words(page), text);
    await page.context().close();
  },

  async "an answer grows, stops on Escape, goes on, and comes again"({ url }) {
    const page = await visit(url);
    await ready(page);
    await page.route("**/v1/chat/completions", async (route) => {
      const body = { ...route.request().postDataJSON(), ignore_eos: true, max_tokens: 800 };
      await route.continue({ postData: JSON.stringify(body) });
    });
    await ask(page, STORY);
    await page.waitForFunction(() => document.querySelector("article.answer .prose")?.textContent.length > 20);
    const early = (await words(page)).length;
    await page.waitForFunction((n) => document.querySelector("article.answer .prose").textContent.length > n, early);
    await page.keyboard.press("Escape");
    await answered(page);
    assert.match(await answer(page).innerText(), /Stopped\./);
    const stopped = await words(page);
    await page.unroute("**/v1/chat/completions");
    const sent = page.waitForRequest("**/v1/chat/completions");
    await answer(page).hover();
    await page.getByRole("button", { name: "Go on" }).click();
    const last = (await sent).postDataJSON().messages.at(-1);
    assert.deepEqual([last.role, last.content.trim().slice(0, 20)], ["assistant", stopped.slice(0, 20)]);
    await answered(page);
    assert.ok((await words(page)).startsWith(stopped.slice(0, 20)));
    await page.getByRole("button", { name: "Answer again" }).click();
    await answered(page);
    assert.equal(await page.locator("article").count(), 2);
    await page.context().close();
  },

  async "the last message is edited; system prompt and sampling are sent"({ url }) {
    const page = await visit(url);
    await ready(page);
    await settings(page, { "System prompt": "You are brief.", Temperature: "0.5", "Top-k": "7", Seed: "11", "Longest answer (tokens)": "8" });
    let sent = page.waitForRequest("**/v1/chat/completions");
    await ask(page, "Hello");
    let body = (await sent).postDataJSON();
    assert.deepEqual(body.messages, [{ role: "system", content: "You are brief." }, { role: "user", content: "Hello" }]);
    assert.deepEqual([body.temperature, body.top_k, body.seed, body.max_tokens, body.top_p], [0.5, 7, 11, 8, undefined]);
    await answered(page);
    await page.locator("#input").focus();
    await page.keyboard.press("ArrowUp");
    await page.getByRole("textbox", { name: "Edit the message" }).fill("What is BitNet?");
    sent = page.waitForRequest("**/v1/chat/completions");
    await page.keyboard.press("Enter");
    body = (await sent).postDataJSON();
    assert.deepEqual(body.messages.slice(1), [{ role: "user", content: "What is BitNet?" }]);
    await answered(page);
    assert.equal(await page.locator("article").count(), 2);
    await page.context().close();
  },

  async "what a model writes is text, never markup"({ url }) {
    const page = await visit(url);
    const evil = "**bold** <img src=x onerror=\"window.hacked=1\"> [x](javascript:window.hacked=1)\n\n```html\n<script>window.hacked=1</script>\n```\n\n- one\n  - two\n\n`a*b*c` snake_case_name 2*3*4";
    await page.evaluate((content) => {
      const messages = [{ role: "user", content: "<b>hi</b>" }, { role: "assistant", content, ended: "stop" }];
      localStorage.setItem("bitnet-launch.conversation.x", JSON.stringify({ id: "x", title: "<i>t</i>", created: 1, changed: 2, settings: {}, messages }));
      localStorage.setItem("bitnet-launch.current", '"x"');
    }, evil);
    await page.reload();
    const prose = answer(page).locator(".prose");
    assert.equal(await prose.locator("strong").innerText(), "bold");
    assert.equal(await prose.locator("img, script, a").count(), 0);
    assert.equal(await prose.locator("pre").innerText(), "<script>window.hacked=1</script>");
    assert.equal(await prose.locator("li li").innerText(), "two");
    assert.equal(await prose.locator("p code").innerText(), "a*b*c");
    assert.match(await prose.innerText(), /snake_case_name/);
    assert.equal(await page.locator(".bubble b, #conversations i").count(), 0);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    await page.context().close();
  },

  async "conversations are exported, deleted, brought back and imported"({ url }) {
    const page = await visit(url);
    await ready(page);
    await ask(page, "Hello");
    await answered(page);
    const text = await words(page);
    const download = page.waitForEvent("download");
    await page.getByRole("button", { name: "Export all" }).click();
    const file = await (await download).path();
    const remove = () => page.getByRole("button", { name: "Delete “Hello”" }).click();
    await remove();
    assert.equal(await page.locator("#conversations li").count(), 0);
    await page.getByRole("button", { name: "Undo" }).click();
    assert.equal(await words(page), text);
    await remove();
    await page.locator("#file").setInputFiles(file);
    await page.getByText("1 conversation added").waitFor();
    await page.getByRole("button", { name: "Hello", exact: true }).click();
    assert.equal(await words(page), text);
    await page.locator("#file").setInputFiles({ name: "x.json", mimeType: "application/json", buffer: Buffer.from("[]") });
    await page.getByText("That file holds no exported conversations").waitFor();
    await page.context().close();
  },

  async "light, dark, and what the system says"({ url }) {
    const page = await visit(url);
    await ready(page);
    const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await paper();
    await page.emulateMedia({ colorScheme: "dark" });
    const dark = await paper();
    assert.notEqual(light, dark);
    const theme = page.getByRole("button", { name: /^Theme/ });
    await theme.click();
    assert.equal(await paper(), light);
    await page.reload();
    assert.equal(await paper(), light);
    await theme.click();
    await page.emulateMedia({ colorScheme: "light" });
    assert.equal(await paper(), dark);
    await shot(page, "dark");
    await page.context().close();
  },

  async "the status panel shows plan, reasons and live numbers"({ url }) {
    const page = await visit(url);
    await ready(page);
    await ask(page, STORY);
    await answered(page);
    const panel = page.getByRole("complementary", { name: "Status" });
    await panel.getByText("Plan, and why").waitFor();
    const text = await panel.innerText();
    for (const part of [/Ready/, /up \d/, /0 engine restarts/, /kernel/, /threads/, /context per slot/, /processor/, /engine\s+\d+ MB/, /\d+ requests? ended/]) assert.match(text, part);
    await page.waitForFunction(() => document.querySelector(".tile .curve").getAttribute("d"));
    await shot(page, "status");
    await page.keyboard.press("Alt+KeyS");
    await panel.waitFor({ state: "hidden" });
    await page.context().close();
  },

  async "a phone of 360 pixels"({ url }) {
    const page = await visit(url, PHONE);
    await ready(page);
    await shot(page, "phone-welcome");
    await ask(page, STORY);
    await answered(page);
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
    await shot(page, "phone");
    await page.getByRole("button", { name: "Conversations" }).tap();
    await page.getByRole("button", { name: STORY, exact: true }).waitFor();
    await page.touchscreen.tap(350, 600);
    await page.getByRole("button", { name: /^Status/ }).tap();
    await page.getByText("Plan, and why").waitFor();
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
    await shot(page, "phone-status");
    const small = await page.evaluate(() => [...document.querySelectorAll("button")].filter((b) => b.offsetParent && b.offsetHeight < 28).map((b) => b.outerHTML));
    assert.deepEqual(small, []);
    await page.context().close();
  },

  async "with the keyboard alone"({ url }) {
    const page = await visit(url);
    await ready(page);
    await page.keyboard.type("Hello");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("you");
    await page.keyboard.press("Enter");
    await answered(page);
    assert.equal(await page.locator(".bubble").innerText(), "Hello\nyou");
    await page.keyboard.press("Alt+KeyN");
    await page.locator(".welcome").waitFor();
    await page.keyboard.press("Alt+ArrowDown");
    await page.locator(".bubble").waitFor();
    await page.keyboard.press("Tab");
    const seen = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.equal(seen, "solid");
    await page.keyboard.press("?");
    await page.getByRole("dialog", { name: "Shortcuts" }).waitFor();
    await shot(page, "shortcuts");
    await page.keyboard.press("Escape");
    await page.keyboard.press("/");
    assert.equal(await page.evaluate(() => document.activeElement.id), "input");
    const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input, textarea")].filter((e) => !(e.getAttribute("aria-label") || e.innerText?.trim() || e.labels?.length || e.hidden || e.getAttribute("aria-hidden"))).map((e) => e.outerHTML));
    assert.deepEqual(nameless, []);
    await page.context().close();
  },

  async "a server with a key asks for it, and says when it is wrong"() {
    const server = await launch("--api-key", "sesame");
    try {
      const page = await visit(server.url);
      const dialog = page.getByRole("dialog", { name: "This server asks for a key" });
      await dialog.waitFor();
      await dialog.getByLabel("API key").fill("wrong");
      await page.keyboard.press("Enter");
      await page.getByText("The key was not accepted").waitFor();
      await shot(page, "key");
      await dialog.getByLabel("API key").fill("sesame");
      await dialog.getByRole("button", { name: "Use this key" }).click();
      await ready(page);
      await ask(page, "Hello");
      await answered(page);
      assert.ok((await words(page)).length > 0);
      await page.reload();
      await ready(page);
      assert.equal(await dialog.isVisible(), false);
      assert.equal(await page.evaluate(() => Object.values(localStorage).join().includes("sesame")), false);
      await page.context().close();
    } finally {
      server.stop();
    }
  },

  async "a lost connection: the answer goes on where it broke off"({ port }) {
    const proxy = await between(port);
    try {
      const page = await visit(proxy.url);
      await ready(page);
      proxy.cutAfter = 6000;
      await ask(page, STORY);
      await answered(page);
      assert.equal(proxy.requests.length, 2);
      const kept = proxy.requests[1].messages.at(-1);
      assert.equal(kept.role, "assistant");
      assert.ok(kept.content.length > 10 && (await words(page)).startsWith(kept.content.trim().slice(0, 30)));
      proxy.stop();
      await page.getByText("The server does not answer. The page goes on when it is back.").waitFor();
      await shot(page, "lost");
      await page.context().close();
    } finally {
      proxy.stop();
    }
  },

  async "busy and loading servers are waited for, mistakes are explained"({ url }) {
    const page = await visit(url);
    await ready(page);
    const refusals = [
      [429, "the queue is full"],
      [503, "Loading model"],
    ];
    await page.route("**/v1/chat/completions", (route) => {
      const [status, message] = refusals.shift() ?? [];
      if (!status) return route.continue();
      return route.fulfill({ status, headers: { "retry-after": "1" }, contentType: "application/json", body: JSON.stringify({ error: { code: status, message, type: "x" } }) });
    });
    await ask(page, "Hello");
    await page.getByText("All slots are busy").waitFor();
    await page.getByText("The model is loading. The answer follows.").waitFor();
    await answered(page);
    assert.ok((await words(page)).length > 0);
    await page.unroute("**/v1/chat/completions");
    await ask(page, "word ".repeat(3000));
    await answer(page).getByText(/exceeds the available context size/).waitFor();
    await page.getByText(/Begin a new conversation, or shorten this one/).waitFor();
    await shot(page, "error");
    await page.context().close();
  },

  async "without the page there is none"() {
    const server = await launch("--no-ui");
    try {
      for (const file of ["", "ui/app.js"]) assert.equal((await fetch(server.url + file)).status, 404);
    } finally {
      server.stop();
    }
  },

  async "behind a prefix"() {
    const server = await launch("--api-prefix", "/llm");
    try {
      const page = await visit(`${server.url}llm`);
      await ready(page);
      await ask(page, "Hello");
      await answered(page);
      assert.ok((await words(page)).length > 0);
      await page.context().close();
    } finally {
      server.stop();
    }
  },
};

const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
const server = await launch();
let failed = 0;
const only = process.argv.slice(2);
for (const [name, test] of Object.entries(tests)) {
  if (only.length && !only.some((part) => name.includes(part))) continue;
  problems.length = 0;
  try {
    await test(server);
    assert.deepEqual(problems, []);
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}\n${error.stack}\n${problems.join("\n")}`);
  }
}
server.stop();
await browser.close();
process.exitCode = failed ? 1 : 0;
