// What the browser keeps: conversations, each under its own key, and a few choices of the person.

const PREFIX = "bitnet-launch.";
const CONVERSATION = `${PREFIX}conversation.`;
const FORMAT = "bitnet-launch conversations";
const ROLES = ["user", "assistant"];

/** Settings of a conversation; empty text: the server decides. */
export const SAMPLING = [
  { name: "temperature", label: "Temperature", step: "any", min: "0", tip: "0 always takes the likeliest token" },
  { name: "top_p", label: "Top-p", step: "any", min: "0", max: "1" },
  { name: "top_k", label: "Top-k", step: "1", min: "0" },
  { name: "min_p", label: "Min-p", step: "any", min: "0", max: "1" },
  { name: "repeat_penalty", label: "Repeat penalty", step: "any", min: "0" },
  { name: "max_tokens", label: "Longest answer (tokens)", step: "1", min: "1", standard: "n_predict", unset: "as long as there is room" },
  { name: "seed", label: "Seed", step: "1", min: "0", tip: "the same seed gives the same answer", unset: "a new one each time" },
];

export class Store {
  constructor() {
    /** Newest change first. */
    this.conversations = [];
    this.full = () => {};
    this.load();
  }

  load() {
    const found = [];
    for (let i = 0; i < localStorage.length; i += 1) {
      const key = localStorage.key(i);
      if (!key.startsWith(CONVERSATION)) continue;
      try {
        const conversation = checked(JSON.parse(localStorage.getItem(key)));
        if (conversation) found.push(conversation);
      } catch {
        // Somebody else's text under our key: left where it is.
      }
    }
    this.conversations = found.sort((a, b) => b.changed - a.changed);
  }

  get(id) {
    return this.conversations.find((conversation) => conversation.id === id);
  }

  create(settings) {
    const now = Date.now();
    return { id: newId(), title: "", created: now, changed: now, settings: { ...settings }, messages: [] };
  }

  /** Saves one that has something in it. */
  save(conversation) {
    conversation.changed = Date.now();
    if (!this.conversations.includes(conversation)) this.conversations = this.conversations.filter((other) => other.id !== conversation.id).concat(conversation);
    this.conversations.sort((a, b) => b.changed - a.changed);
    this.write(CONVERSATION + conversation.id, conversation);
  }

  remove(conversation) {
    this.conversations = this.conversations.filter((other) => other.id !== conversation.id);
    localStorage.removeItem(CONVERSATION + conversation.id);
  }

  exported(conversations) {
    return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
  }

  /** Adds the conversations of an exported text; how many. Throws with a sentence when it is none. */
  import(text) {
    let parsed;
    try {
      parsed = JSON.parse(text);
    } catch {
      throw new Error("That file is not JSON");
    }
    if (parsed?.format !== FORMAT || !Array.isArray(parsed.conversations)) throw new Error("That file holds no exported conversations");
    const known = new Set(this.conversations.map((conversation) => conversation.id));
    const fresh = parsed.conversations.map(checked).filter(Boolean);
    for (const conversation of fresh) {
      if (known.has(conversation.id)) conversation.id = newId();
      this.conversations.push(conversation);
      this.write(CONVERSATION + conversation.id, conversation);
    }
    this.conversations.sort((a, b) => b.changed - a.changed);
    return fresh.length;
  }

  choice(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  }

  choose(name, value) {
    this.write(PREFIX + name, value);
  }

  write(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
    } catch {
      this.full();
    }
  }
}

/** What somebody gives us as a conversation, with only what belongs there; `null` if it is none. */
function checked(given) {
  if (typeof given?.id !== "string" || !Array.isArray(given.messages)) return null;
  const messages = given.messages
    .filter((message) => ROLES.includes(message?.role) && typeof message.content === "string")
    .map(({ role, content, meta, ended }) => ({ role, content, meta: numbers(meta), ended: typeof ended === "string" ? ended : undefined }));
  const time = (value) => (Number.isFinite(value) ? value : Date.now());
  const text = (value) => (typeof value === "string" ? value : "");
  const settings = { system: text(given.settings?.system), stop: text(given.settings?.stop) };
  for (const { name } of SAMPLING) settings[name] = text(given.settings?.[name]);
  return { id: given.id.slice(0, 64), title: text(given.title).slice(0, 200), created: time(given.created), changed: time(given.changed), settings, messages };
}

const numbers = (meta) =>
  meta && typeof meta === "object" ? Object.fromEntries(Object.entries(meta).filter(([, value]) => Number.isFinite(value))) : undefined;

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("");

/** The first words of the first message. */
export function titleOf(conversation) {
  const text = conversation.title || conversation.messages.find((message) => message.role === "user")?.content || "";
  const words = text.trim().split("\n")[0];
  if (words.length <= 60) return words || "New conversation";
  return `${words.slice(0, 60).replace(/\s+\S*$/, "")}…`;
}

/** The sampling fields that are set, as the API takes them. */
export function sampling(settings) {
  const body = {};
  for (const { name } of SAMPLING) {
    const text = settings[name]?.trim();
    if (text && Number.isFinite(Number(text))) body[name] = Number(text);
  }
  const stop = settings.stop?.split("\n").filter(Boolean);
  if (stop?.length) body.stop = stop;
  return body;
}
