// Requests to the server that sent this page, with the key if there is one. Failures come as `Failure` with a kind the
// page knows how to handle.

const KEY = "bitnet-launch.key";
const STATUS_TIMEOUT_MS = 4000;

/** `kind`: key, busy, loading, network, invalid or server. */
export class Failure extends Error {
  constructor(kind, message, waitSeconds) {
    super(message);
    this.kind = kind;
    this.waitSeconds = waitSeconds;
  }
}

export class Api {
  constructor() {
    this.base = new URL(document.baseURI);
    this.key = sessionStorage.getItem(KEY) ?? "";
  }

  useKey(key) {
    this.key = key;
    sessionStorage.setItem(KEY, key);
  }

  async send(path, options = {}) {
    const headers = { ...options.headers };
    if (this.key) headers.authorization = `Bearer ${this.key}`;
    let reply;
    try {
      reply = await fetch(new URL(path, this.base), { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Failure("network", "The server does not answer");
    }
    if (!reply.ok) throw await failure(reply);
    return reply;
  }

  async status() {
    return (await this.send("status", { signal: AbortSignal.timeout(STATUS_TIMEOUT_MS) })).json();
  }

  async props() {
    return (await this.send("props")).json();
  }

  /** Streams an answer; `onFrame` sees every frame. Returns when the stream has ended properly. */
  async chat(body, signal, onFrame) {
    const reply = await this.send("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (signal.aborted) throw error;
        throw new Failure("network", "The connection was lost");
      }
      if (part.done) throw new Failure("network", "The connection ended in the middle of the answer");
      const events = (rest + part.value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const frame = JSON.parse(data);
        if (frame.error) throw described(frame.error.code, frame.error.message);
        onFrame(frame);
      }
    }
  }
}

async function failure(reply) {
  let message = `${reply.status} ${reply.statusText}`;
  try {
    message = (await reply.json()).error?.message ?? message;
  } catch {
    // Something between here and the server answered in its own way; the status says enough.
  }
  return described(reply.status, message, Number(reply.headers.get("retry-after")) || undefined);
}

function described(status, message, wait) {
  if (status === 401) return new Failure("key", "The key was not accepted");
  if (status === 429) return new Failure("busy", "The queue is full", wait ?? 1);
  if (status === 503 && !message.startsWith("the engine can't")) return new Failure("loading", message, wait ?? 1);
  if (status >= 500) return new Failure("server", message);
  return new Failure("invalid", message);
}
