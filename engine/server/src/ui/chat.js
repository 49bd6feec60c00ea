// The messages of one conversation and how an answer comes about: streaming, stopping, waiting for a busy or restarting
// server, and going on where a lost connection broke off.

import { Failure } from "./api.js";
import { byId, copyButton, duration, h, icon, iconButton, plural, rate } from "./dom.js";
import { markdownView } from "./markdown.js";
import { sampling, titleOf } from "./store.js";

/** An answer is asked for again at most this often before the page gives up. */
const TRIES = { busy: 60, loading: 600, network: 40 };
const NETWORK_PAUSE_MS = 1500;
/** A reader closer to the end than this follows the answer. */
const FOLLOW_PX = 80;
const SUGGESTIONS = ["What is BitNet?", "Tell me a story about a fox.", "How do I use you from a program?"];

export class Chat {
  /** `hooks`: `changed()`, `askKey(why)`, `announce(text)`, `facts()`. */
  constructor(api, store, hooks) {
    this.api = api;
    this.store = store;
    this.hooks = hooks;
    this.list = byId("messages");
    this.running = null;
    this.rows = [];
    this.list.addEventListener("scroll", () => this.onScroll());
    byId("down").onclick = () => this.toEnd();
  }

  show(conversation) {
    this.stop();
    this.conversation = conversation;
    this.render();
    this.toEnd();
  }

  get busy() {
    return this.running !== null;
  }

  stop() {
    this.running?.abort();
  }

  // What the person does

  send(text) {
    if (this.busy || !text.trim()) return false;
    this.conversation.messages.push({ role: "user", content: text });
    this.answer();
    return true;
  }

  regenerate() {
    const { messages } = this.conversation;
    if (this.busy || !messages.length) return;
    if (messages.at(-1).role === "assistant") messages.pop();
    if (messages.length) this.answer();
  }

  /** Lets the model go on with its last answer. */
  proceed() {
    if (this.busy || this.conversation.messages.at(-1)?.role !== "assistant") return;
    this.answer(this.conversation.messages.pop());
  }

  editLast() {
    if (this.busy) return;
    const at = this.conversation.messages.findLastIndex((message) => message.role === "user");
    if (at >= 0) this.edit(at);
  }

  edit(at) {
    const message = this.conversation.messages[at];
    const done = () => this.render(at);
    const save = () => {
      const text = area.value.trim();
      if (!text || this.busy) return;
      this.conversation.messages.splice(at, Infinity, { role: "user", content: text });
      this.answer();
      byId("input").focus();
    };
    const area = h("textarea", { value: message.content, "aria-label": "Edit the message", rows: Math.min(message.content.split("\n").length + 1, 12) });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        done();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        save();
      }
    });
    const buttons = [
      h("button", { type: "button", onclick: done }, "Cancel"),
      h("button", { type: "button", className: "main", onclick: save }, "Send again"),
    ];
    this.rows[at].replaceChildren(h("div", { className: "editor" }, area, h("div", { className: "actions" }, buttons)));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  // An answer

  /** Answers the conversation, or goes on with `partial`. */
  async answer(partial) {
    const { conversation } = this;
    const message = partial ?? { role: "assistant", content: "" };
    message.ended = undefined;
    conversation.messages.push(message);
    this.store.save(conversation);
    this.render();
    const view = this.rows.at(-1).view;
    this.toEnd();
    const control = new AbortController();
    this.running = control;
    this.hooks.changed();
    this.hooks.announce("Answering");
    try {
      await this.untilAnswered(conversation, message, control.signal, view);
    } catch (error) {
      message.ended = control.signal.aborted ? "stopped" : error.message;
    }
    this.running = null;
    this.hooks.announce(spoken(message));
    this.finish(conversation, message);
  }

  finish(conversation, message) {
    const empty = !message.content && message.ended === "stopped";
    if (empty) conversation.messages.pop();
    if (this.store.get(conversation.id)) this.store.save(conversation);
    if (this.conversation === conversation) {
      const following = this.following();
      this.render(Math.max(0, conversation.messages.length - 2));
      if (following) this.toEnd();
    }
    this.hooks.changed();
  }

  /** Asks until there is a whole answer, a failure that waiting can't mend, or the person stops it. */
  async untilAnswered(conversation, message, signal, view) {
    const tries = { ...TRIES };
    for (;;) {
      const before = message.content;
      try {
        return await this.once(conversation, message, signal, view);
      } catch (error) {
        if (signal.aborted || !(error instanceof Failure)) throw error;
        if (message.content !== before) tries[error.kind] = TRIES[error.kind];
        if (error.kind === "key") {
          if (!(await this.hooks.askKey(this.api.key ? error.message : ""))) throw error;
          continue;
        }
        if (!(tries[error.kind] > 0)) throw error;
        tries[error.kind] -= 1;
        view.wait(waiting(error, message));
        await pause(error.kind === "network" ? NETWORK_PAUSE_MS : error.waitSeconds * 1000, signal);
      }
    }
  }

  /** One request. What came before a lost connection is sent as the beginning of the answer. */
  async once(conversation, message, signal, view) {
    const { settings, messages } = conversation;
    const sent = messages.filter((one) => one.content).map(({ role, content }) => ({ role, content }));
    if (settings.system?.trim()) sent.unshift({ role: "system", content: settings.system });
    const body = { messages: sent, return_progress: true, timings_per_token: true, ...sampling(settings) };
    const asked = performance.now();
    let first = 0;
    const produced = message.meta?.tokens ?? 0;
    let timings;
    await this.api.chat(body, signal, (frame) => {
      const choice = frame.choices?.[0];
      if (frame.timings) timings = frame.timings;
      if (frame.prompt_progress) view.prefill(frame.prompt_progress);
      if (choice?.delta?.content) {
        first ||= performance.now() - asked;
        message.content += choice.delta.content;
        view.text(timings);
      }
      if (choice?.finish_reason) message.ended = choice.finish_reason;
    });
    message.meta = {
      tokens: produced + (timings?.predicted_n ?? 0),
      tok_s: timings?.predicted_per_second,
      first_s: first / 1000,
      prompt: (timings?.prompt_n ?? 0) + (timings?.cache_n ?? 0),
      cached: timings?.cache_n,
    };
  }

  // What is seen

  /** Builds the rows from `from` on again. */
  render(from = 0) {
    const { messages } = this.conversation;
    const following = this.following();
    byId("title").textContent = titleOf(this.conversation);
    document.title = messages.length ? `${titleOf(this.conversation)} – bitnet-launch` : "bitnet-launch";
    this.rows = this.rows.slice(0, from);
    const fresh = messages.slice(from).map((message, i) => this.row(message, from + i));
    this.rows.push(...fresh);
    this.list.replaceChildren(...(messages.length ? this.rows : [this.welcome()]));
    if (following) this.toEnd();
    this.onScroll();
  }

  row(message, at) {
    const last = at === this.conversation.messages.length - 1;
    if (message.role === "user") return this.question(message, at);
    const view = new AnswerView(message, () => this.following() && this.toEnd());
    const buttons = message.content ? [copyButton("Copy the answer", () => message.content)] : [];
    if (last && !this.busy) {
      buttons.push(iconButton("again", "Answer again", () => this.regenerate()));
      if (message.content && message.ended !== "stop") buttons.push(iconButton("play", "Go on", () => this.proceed()));
    }
    const row = h("article", { className: "answer", "aria-label": "Answer" }, view.root, h("footer", {}, view.meta, h("div", { className: "tools" }, buttons)));
    row.view = view;
    return row;
  }

  question(message, at) {
    const isLast = at === this.conversation.messages.findLastIndex((one) => one.role === "user");
    const buttons = [copyButton("Copy the message", () => message.content)];
    if (isLast && !this.busy) buttons.push(iconButton("edit", "Edit the message", () => this.edit(at)));
    const bubble = h("div", { className: "bubble" }, message.content);
    return h("article", { className: "question", "aria-label": "Your message" }, bubble, h("footer", {}, h("div", { className: "tools" }, buttons)));
  }

  welcome() {
    const facts = this.hooks.facts();
    const ask = (text) => h("button", { type: "button", onclick: () => this.send(text) }, text);
    return h(
      "div",
      { className: "welcome" },
      h("div", { className: "trits", "aria-hidden": "true" }, ["−", "0", "+"].map((sign) => h("span", {}, sign))),
      h("h2", {}, facts.title),
      h("p", {}, facts.text),
      h("div", { className: "suggestions" }, SUGGESTIONS.map(ask)),
    );
  }

  // Following the end

  following() {
    return this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < FOLLOW_PX;
  }

  toEnd() {
    this.list.scrollTop = this.list.scrollHeight;
  }

  onScroll() {
    byId("down").hidden = this.following();
  }
}

/** One answer: its text, what it is waiting for, its numbers. */
class AnswerView {
  constructor(message, grown) {
    this.message = message;
    this.grown = grown;
    this.prose = markdownView();
    this.note = h("div", { className: "note" });
    this.meta = h("p", { className: "meta" });
    this.root = h("div", { className: "body" }, this.prose.root, this.note);
    this.frame = 0;
    this.prose.update(message.content);
    this.summary();
  }

  summary() {
    const { meta, ended, content } = this.message;
    if (meta?.tokens) {
      const speed = Number.isFinite(meta.tok_s) ? [`${rate(meta.tok_s)} tok/s`] : [];
      this.meta.textContent = [plural(meta.tokens, "token"), ...speed, `first after ${duration(meta.first_s)}`].join(" · ");
      this.meta.title = `prompt of ${meta.prompt} tokens, ${meta.cached ?? 0} of them found in the cache`;
    }
    if (ended === "length") this.say("The answer reached its limit.");
    else if (ended === "stopped") this.say("Stopped.");
    else if (ended && ended !== "stop" && ended !== "tool_calls") this.fail(ended);
    else if (!ended && !content) this.dots();
    else if (ended && !content) this.say("The model ended without a word.");
  }

  say(text) {
    this.note.className = "note";
    this.note.replaceChildren(text);
  }

  fail(text) {
    this.note.className = "note failed";
    const long = /context/.test(text) ? " Begin a new conversation, or shorten this one." : "";
    this.note.replaceChildren(icon("help"), h("span", {}, `${text}.${long}`.replace(/\.\.$/, ".")));
  }

  dots() {
    this.note.className = "note";
    this.note.replaceChildren(h("span", { className: "dots", role: "img", "aria-label": "working" }, h("i"), h("i"), h("i")));
  }

  wait(text) {
    this.note.className = "note";
    this.note.replaceChildren(h("span", { className: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), text);
    this.grown();
  }

  prefill({ total, processed }) {
    if (processed >= total || total < 256) return;
    const bar = h("progress", { max: total, value: processed, "aria-label": "Reading the prompt" });
    this.note.className = "note";
    this.note.replaceChildren(bar, `Reading ${processed.toLocaleString("en")} of ${total.toLocaleString("en")} tokens`);
    this.grown();
  }

  /** At most once per frame on the screen, however fast tokens come. */
  text(timings) {
    this.timings = timings;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.note.replaceChildren();
      this.prose.update(this.message.content);
      const { predicted_n: n, predicted_per_second: speed } = this.timings ?? {};
      if (n > 1) this.meta.textContent = `${plural(n, "token")} · ${rate(speed)} tok/s`;
      this.grown();
    });
  }
}

function waiting(error, message) {
  if (error.kind === "busy") return "All slots are busy and the queue is full. Trying again…";
  if (error.kind === "loading") return /Loading/.test(error.message) ? "The model is loading. The answer follows." : `The server says: ${error.message}. Trying again…`;
  return message.content ? "The connection was lost. Going on when the server is back…" : "The server does not answer. Trying again…";
}

/** What a screen reader says when an answer has ended. */
function spoken(message) {
  if (message.ended === "stopped") return "Stopped";
  if (!message.content) return `No answer: ${message.ended}`;
  return message.content.slice(0, 2000);
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
