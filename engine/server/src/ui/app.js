// Puts the page together: conversations at the side, messages in the middle, status at the other side; keys and dialogs.

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { byId, duration, h, icon, iconButton, plural, rate, saveFile } from "./dom.js";
import { Panel } from "./panel.js";
import { SAMPLING, Store, titleOf } from "./store.js";

const THEMES = ["auto", "light", "dark"];
const THEME_ICONS = { auto: "auto", light: "sun", dark: "moon" };
const NARROW = matchMedia("(max-width: 899px)");
const TOAST_MS = 8000;

const api = new Api();
const store = new Store();
const panel = new Panel(api, { changed: onStatus, lost: onLost, denied: onDenied, close: () => showPanel(false) });
const chat = new Chat(api, store, { changed: onChat, askKey, announce, facts: welcomeFacts });
const input = byId("input");

let props = null;
let reachable = true;
let keyRefused = false;

const SHORTCUTS = [
  ["Enter", "send"],
  ["Shift Enter", "break the line"],
  ["Esc", "stop the answer, or close what is open"],
  ["↑", "edit the last message, in an empty field"],
  ["/", "go to the message field"],
  ["Alt N", "new conversation", "KeyN", () => open(null)],
  ["Alt ↓", "next conversation", "ArrowDown", () => step(1)],
  ["Alt ↑", "previous conversation", "ArrowUp", () => step(-1)],
  ["Alt R", "answer again", "KeyR", () => chat.regenerate()],
  ["Alt G", "go on with the answer", "KeyG", () => chat.proceed()],
  ["Alt S", "status panel", "KeyS", () => showPanel(!panel.open)],
  ["Alt B", "conversations", "KeyB", () => showSide(!document.body.classList.contains("side-open"))],
  ["Alt P", "settings of this conversation", "KeyP", showSettings],
  ["Alt T", "theme", "KeyT", nextTheme],
  ["?", "this list"],
];

// Conversations

let current = null;

function open(id) {
  const settings = store.choice("settings", {});
  current = (id && store.get(id)) || store.create(settings);
  store.choose("current", current.id);
  chat.show(current);
  listConversations();
  if (NARROW.matches) showSide(false);
  input.focus({ preventScroll: true });
}

function step(by) {
  const all = store.conversations;
  const at = all.findIndex((one) => one.id === current.id);
  const next = at < 0 ? all[0] : all[at + by];
  if (next) open(next.id);
}

function listConversations() {
  const items = store.conversations.map((conversation) => {
    const here = conversation.id === current.id;
    const title = h("button", { type: "button", className: "title", title: titleOf(conversation), onclick: () => open(conversation.id), "aria-current": here ? "true" : null }, titleOf(conversation));
    const item = h("li", { className: here ? "here" : "" }, title);
    item.append(
      h(
        "span",
        { className: "tools" },
        iconButton("edit", `Rename “${titleOf(conversation)}”`, () => rename(conversation, item)),
        iconButton("download", `Export “${titleOf(conversation)}”`, () => saveFile("bitnet-conversation.json", store.exported([conversation]))),
        iconButton("trash", `Delete “${titleOf(conversation)}”`, () => remove(conversation)),
      ),
    );
    return item;
  });
  byId("conversations").replaceChildren(...items);
  byId("export").disabled = !items.length;
}

function rename(conversation, item) {
  const field = h("input", { type: "text", value: titleOf(conversation), maxLength: 200, "aria-label": "Title" });
  let done = false;
  const finish = (keep) => {
    if (done) return;
    done = true;
    if (keep) {
      conversation.title = field.value.trim();
      store.save(conversation);
      if (conversation === current) byId("title").textContent = titleOf(conversation);
    }
    listConversations();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") finish(false);
    event.stopPropagation();
  });
  field.addEventListener("blur", () => finish(true));
  item.replaceChildren(field);
  field.select();
}

function remove(conversation) {
  if (conversation === current) chat.stop();
  store.remove(conversation);
  if (conversation === current) open(null);
  else listConversations();
  toast(`Deleted “${titleOf(conversation)}”.`, "Undo", () => {
    store.save(conversation);
    open(conversation.id);
  });
}

async function importFile() {
  const [file] = byId("file").files;
  byId("file").value = "";
  if (!file) return;
  try {
    const n = store.import(await file.text());
    listConversations();
    toast(`${plural(n, "conversation")} added.`);
  } catch (error) {
    toast(`${error.message}.`);
  }
}

// The field to write in

function fit() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, innerHeight * 0.4)}px`;
}

function send() {
  if (chat.send(input.value)) {
    input.value = "";
    fit();
  }
}

function onChat() {
  byId("send").hidden = chat.busy;
  byId("stop").hidden = !chat.busy;
  document.body.classList.toggle("busy", chat.busy);
  const last = current?.messages.findLast((message) => message.meta?.prompt);
  const room = panel.status?.model?.slot_context;
  const used = last ? last.meta.prompt + last.meta.tokens : 0;
  byId("room").textContent = last && room ? `${used.toLocaleString("en")} of ${room.toLocaleString("en")} tokens of context used` : "";
  byId("room").classList.toggle("warn", Boolean(room) && used > 0.9 * room);
  if (current) listConversations();
  if (!chat.busy && document.activeElement === document.body) input.focus({ preventScroll: true });
}

// The state of the server

function onStatus(status, speed) {
  const back = !reachable;
  reachable = true;
  keyRefused = false;
  const words = { loading: "loading", draining: "shutting down", failed: "failed" };
  const name = (status.model?.id ?? "model").replace(/\.gguf$/, "");
  const now = speed > 0 ? `${name} · ${rate(speed)} tok/s` : name;
  chip(status.state, words[status.state] ?? now);
  if (status.state === "loading") notice(`The model is loading, since ${duration(status.now_ms / 1000)}. You can write already.`);
  else if (status.state === "failed") notice(`The engine can't be started: ${status.reason}`, true);
  else if (status.state === "draining") notice("The server is shutting down.");
  else notice("");
  if (status.state === "ready" && (!props || back)) readProps();
  if (!current?.messages.length) chat.render();
}

function onLost() {
  reachable = false;
  chip("lost", "no connection");
  notice("The server does not answer. The page goes on when it is back.", true);
}

function onDenied() {
  chip("lost", "key needed");
  if (keyRefused || byId("key").open) return;
  keyRefused = true;
  askKey(api.key ? "The key was not accepted" : "");
}

function chip(state, text) {
  const button = byId("state");
  button.querySelector(".dot").className = `dot ${state}`;
  button.querySelector(".text").textContent = text;
  button.setAttribute("aria-label", `Status: ${text}. Open or close the status panel`);
}

async function readProps() {
  try {
    props = await api.props();
  } catch {
    props = null;
  }
}

function welcomeFacts() {
  const model = panel.status?.model;
  if (!model) return { title: "bitnet-launch", text: "A BitNet model on ordinary processors." };
  const name = (model.name || model.id).replace(/\.gguf$/, "");
  const cores = `${plural(model.threads, "thread")}, kernel ${model.kernel}`;
  const demo = model.path.startsWith("bitnet-demo") ? " It is the small demo model: friendly, quick and often wrong." : "";
  return { title: name, text: `${model.parameters} parameters of −1, 0 and +1 on the processor: ${cores}.${demo}` };
}

function notice(text, bad = false) {
  const place = byId("notice");
  if (place.textContent === text) return;
  place.textContent = text;
  place.className = bad ? "bad" : "";
}

let toastTimer = 0;

function toast(text, action, onclick) {
  const hide = () => byId("toast").replaceChildren();
  const button = action && h("button", { type: "button", onclick: () => { hide(); onclick(); } }, action);
  byId("toast").replaceChildren(h("div", {}, text, button || ""));
  clearTimeout(toastTimer);
  toastTimer = setTimeout(hide, TOAST_MS);
}

function announce(text) {
  byId("announce").textContent = text;
}

// Dialogs

/** Asks for the key; whether there is a new one. All who ask at the same time wait for the same answer. */
let asking = null;

function askKey(why) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key");
    const field = dialog.querySelector("input");
    byId("key-why").replaceChildren(why ? `${why}. Try again. ` : "", "It is the one given with ", h("code", {}, "--api-key"), ", kept until this tab is closed.");
    byId("key-why").classList.toggle("warn", Boolean(why));
    field.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      asking = null;
      const key = field.value.trim();
      const given = dialog.returnValue === "use" && key !== "";
      if (given) {
        api.useKey(key);
        keyRefused = false;
        panel.soon();
      }
      resolve(given);
    }, { once: true });
    dialog.showModal();
    field.focus();
  });
  return asking;
}

function showSettings() {
  const dialog = byId("settings");
  if (dialog.open) return;
  const defaults = props?.default_generation_settings ?? {};
  for (const field of dialog.querySelectorAll("[name]")) {
    field.value = current.settings[field.name] ?? "";
    const standard = defaults[field.dataset.standard ?? field.name];
    if (field.type === "number") field.placeholder = standard === undefined || standard < 0 || standard === 4294967295 ? field.dataset.unset : `${Math.round(standard * 1000) / 1000}`;
  }
  dialog.showModal();
}

function buildSettings() {
  const dialog = byId("settings");
  const fields = SAMPLING.map(({ name, label, step, min, max, tip, standard, unset = "server's choice" }) => {
    const field = h("input", { type: "number", name, step, min, max, inputMode: "decimal", title: tip });
    if (standard) field.dataset.standard = standard;
    field.dataset.unset = unset;
    return h("label", {}, label, field);
  });
  const stop = h("label", {}, "Stop at (one per line)", h("textarea", { name: "stop", rows: 1 }));
  byId("sampling").replaceChildren(...fields, stop);
  dialog.addEventListener("input", (event) => {
    if (!event.target.name) return;
    current.settings[event.target.name] = event.target.validity.valid ? event.target.value : "";
    store.choose("settings", current.settings);
    if (store.get(current.id)) store.save(current);
  });
  byId("reset").onclick = () => {
    current.settings = {};
    store.choose("settings", {});
    if (store.get(current.id)) store.save(current);
    for (const field of dialog.querySelectorAll("[name]")) field.value = "";
  };
}

function showHelp() {
  if (!byId("shortcuts").open) byId("shortcuts").showModal();
}

// Sides and theme

function showPanel(open) {
  if (open && NARROW.matches) showSide(false);
  store.choose("panel", open);
  panel.show(open);
  byId("state").setAttribute("aria-expanded", open);
  byId("panel").inert = !open;
  if (!open && byId("panel").contains(document.activeElement)) byId("state").focus();
}

function showSide(open) {
  document.body.classList.toggle("side-open", open);
  if (!NARROW.matches) store.choose("side", open);
  byId("menu").setAttribute("aria-expanded", open);
  byId("side").inert = !open;
}

function useTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").replaceChildren(icon(THEME_ICONS[theme]));
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
  byId("theme").title = `Theme: ${theme}`;
}

function nextTheme() {
  const theme = THEMES[(THEMES.indexOf(store.choice("theme", "auto")) + 1) % THEMES.length];
  store.choose("theme", theme);
  useTheme(theme);
}

// Keys

function onKey(event) {
  const inDialog = document.querySelector("dialog[open]");
  const writes = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "Escape" && !inDialog) {
    if (chat.busy) chat.stop();
    else if (NARROW.matches && panel.open) showPanel(false);
    else if (NARROW.matches) showSide(false);
    return;
  }
  if (inDialog || event.ctrlKey || event.metaKey) return;
  if (event.altKey) {
    const shortcut = SHORTCUTS.find(([, , code]) => code === event.code);
    if (shortcut) {
      event.preventDefault();
      shortcut[3]();
    }
  } else if (!writes && event.key === "?") {
    event.preventDefault();
    showHelp();
  } else if (!writes && event.key === "/") {
    event.preventDefault();
    input.focus();
  }
}

function onInputKey(event) {
  if (event.isComposing || event.altKey) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && input.value === "" && current.messages.length) {
    event.preventDefault();
    chat.editLast();
  }
}

function start() {
  for (const button of document.querySelectorAll("[data-icon]")) button.prepend(icon(button.dataset.icon));
  for (const button of document.querySelectorAll(".bar [aria-label], #send, #stop, #down")) button.title = button.getAttribute("aria-label");
  byId("keys").replaceChildren(
    ...SHORTCUTS.flatMap(([keys, what]) => [h("dt", {}, keys.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, what)]),
  );
  byId("base-url").textContent = new URL("v1", api.base).href;
  buildSettings();
  useTheme(store.choice("theme", "auto"));
  showSide(!NARROW.matches && store.choice("side", true));
  showPanel(store.choice("panel", matchMedia("(min-width: 1200px)").matches) && !NARROW.matches);
  NARROW.addEventListener("change", () => showSide(!NARROW.matches));
  store.full = () => toast("The browser's storage is full: delete or export conversations.");

  byId("skip").onclick = () => input.focus();
  byId("new").onclick = () => open(null);
  byId("menu").onclick = () => showSide(!document.body.classList.contains("side-open"));
  byId("state").onclick = () => showPanel(!panel.open);
  byId("tune").onclick = showSettings;
  byId("theme").onclick = nextTheme;
  byId("help").onclick = showHelp;
  byId("export").onclick = () => saveFile("bitnet-conversations.json", store.exported(store.conversations));
  byId("import").onclick = () => byId("file").click();
  byId("file").onchange = importFile;
  byId("shade").onclick = () => { showSide(false); showPanel(false); };
  byId("key-cancel").onclick = () => byId("key").close("");
  byId("stop").onclick = () => chat.stop();
  byId("composer").onsubmit = (event) => { event.preventDefault(); send(); };
  input.oninput = fit;
  input.onkeydown = onInputKey;
  document.addEventListener("keydown", onKey);
  // Another tab changed something; what is being answered here stays as it is.
  addEventListener("storage", () => {
    if (chat.busy) return;
    store.load();
    current = store.get(current.id) ?? current;
    chat.conversation = current;
    chat.render();
    listConversations();
  });
  open(store.choice("current", null));
  onChat();
  panel.soon();
}

start();
