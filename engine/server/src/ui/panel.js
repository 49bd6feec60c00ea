// The status panel: what the server does now, what was decided for this machine and why. One request per second while it
// is open and the page is seen.

import { byId, bytes, duration, h, icon, plural, rate, svg } from "./dom.js";

const OPEN_MS = 1000;
const CLOSED_MS = 5000;
/** Points of a chart. */
const HISTORY = 120;
/** Points a chart begins with. */
const SHORTEST = 30;
/** Rates are taken over this many samples, so that they don't flicker. */
const WINDOW = 3;
const WIDTH = 240;
const HEIGHT = 44;

export class Panel {
  /** `hooks`: `changed(status)`, `lost()`, `denied()`. */
  constructor(api, hooks) {
    this.api = api;
    this.hooks = hooks;
    this.root = byId("panel");
    this.samples = [];
    this.status = null;
    this.open = false;
    this.timer = 0;
    this.planned = "";
    this.build();
    document.addEventListener("visibilitychange", () => this.soon());
  }

  show(open) {
    this.open = open;
    document.body.classList.toggle("panel-open", open);
    this.soon();
  }

  /** Asks now, and from then on at its pace. */
  soon() {
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.tick(), 0);
  }

  async tick() {
    clearTimeout(this.timer);
    try {
      this.take(await this.api.status());
    } catch (error) {
      this.samples = [];
      this.life.replaceChildren(h("span", { className: "dot lost" }), h("strong", {}, "No connection"), this.status ? " · what is shown is from before" : "");
      if (error.kind === "key") this.hooks.denied();
      else this.hooks.lost();
    }
    clearTimeout(this.timer);
    const soon = this.open || this.status?.state !== "ready";
    if (!document.hidden) this.timer = setTimeout(() => this.tick(), soon ? OPEN_MS : CLOSED_MS);
  }

  take(status) {
    const last = this.samples.at(-1);
    // Another server behind the same address, or a long pause: rates begin anew.
    if (last && (status.now_ms < last.at || status.now_ms - last.at > 3 * CLOSED_MS)) this.samples = [];
    this.samples.push(sample(status));
    if (this.samples.length > HISTORY + WINDOW) this.samples.shift();
    this.status = status;
    if (this.open) this.update();
    this.hooks.changed(status, this.speed());
  }

  /** Tokens per second now. */
  speed() {
    return over(this.samples, this.samples.length - 1, "predicted");
  }

  // Building once, filling often

  build() {
    this.decode = tile("Writing", "tok/s");
    this.prefill = tile("Reading prompts", "tok/s");
    this.cpu = tile("Processor", "cores");
    this.memory = tile("Memory", "");
    this.energy = tile("Energy", "J/token");
    this.slots = h("div", { className: "slots" });
    this.queue = h("p", { className: "line" });
    this.life = h("p", { className: "line" });
    this.brake = h("p", { className: "line" });
    this.parts = h("div", { className: "parts" });
    this.plan = h("div");
    const close = h("button", { type: "button", className: "round", "aria-label": "Close the status panel", onclick: () => this.hooks.close() }, icon("close"));
    this.root.replaceChildren(
      h("header", {}, h("h2", {}, "Status"), close),
      this.life,
      h("div", { className: "tiles" }, [this.decode, this.prefill, this.cpu, this.memory, this.energy].map((tile) => tile.root)),
      section("Slots", this.queue, this.slots),
      section("Memory", this.parts),
      this.brake,
      this.plan,
    );
  }

  update() {
    const { status, samples } = this;
    const { vitals, report, requests, model } = status;
    const series = (name, scale = 1) => samples.map((_, i) => over(samples, i, name) * scale).filter(Number.isFinite).slice(-HISTORY);
    this.decode.fill(series("predicted"), rate);
    this.prefill.fill(series("prompt"), rate);
    this.cpu.fill(series("cpu_ms", 1e-3), (n) => n.toFixed(2));
    const resident = samples.map((one) => one.rss).filter(Number.isFinite).slice(-HISTORY);
    this.memory.fill(resident, bytes, 0);
    this.showEnergy(series);
    this.life.replaceChildren(...this.lifeLine(status));
    this.queue.textContent = `${requests.processing} running, ${requests.waiting} waiting, ${plural(requests.ended, "request")} ended${requests.failed ? `, ${requests.failed} failed` : ""}`;
    this.showSlots(status.slots, model);
    this.showParts(vitals, report);
    this.showBrake(vitals);
    this.showPlan(report, model);
  }

  lifeLine({ state, reason, now_ms, engine_restarts, version, vitals }) {
    const words = { ready: "Ready", loading: "Loading the model", draining: "Shutting down", failed: "Failed" };
    const parts = [`up ${duration(now_ms / 1000)}`, plural(engine_restarts, "engine restart"), `version ${version}`];
    if (!vitals.engine && state === "ready") parts.unshift("a new engine is starting");
    return [h("span", { className: `dot ${state}` }), h("strong", {}, words[state] ?? state), ` · ${parts.join(" · ")}`, reason ? h("span", { className: "reason" }, reason) : ""];
  }

  showEnergy(series) {
    const { samples } = this;
    const given = samples.some((one) => Number.isFinite(one.energy_j));
    this.energy.root.hidden = !given;
    if (!given) return;
    const watts = series("energy_j");
    const first = samples[0];
    const last = samples.at(-1);
    const tokens = last.predicted - first.predicted;
    const joules = last.energy_j - first.energy_j;
    const words = tokens > 0 ? `${rate(joules / tokens)} J/token` : "no tokens yet";
    this.energy.fill(watts, (n) => `${n.toFixed(1)}`);
    this.energy.unit.textContent = `W · ${words}`;
  }

  showSlots(slots, model) {
    if (!slots) {
      this.slots.replaceChildren(h("p", { className: "line" }, "Hidden by --no-slots"));
      return;
    }
    const context = model?.slot_context ?? 1;
    const bars = slots.map((slot) => {
      const share = Math.min(100, (100 * slot.kv_tokens) / context);
      const doing = slot.processing ? (slot.state === 1 ? `reading ${slot.prompt_processed} of ${slot.prompt}` : `${plural(slot.decoded, "token")} written`) : "idle";
      const fill = h("span", { className: "fill" });
      fill.style.width = `${share}%`;
      const label = `Slot ${slot.id}: ${doing}, ${slot.kv_tokens} of ${context} tokens in the cache`;
      return h(
        "div",
        { className: slot.processing ? "slot busy" : "slot", role: "img", "aria-label": label, title: label },
        h("span", { className: "name" }, `${slot.id}`),
        h("span", { className: "track" }, fill),
        h("span", { className: "doing" }, doing),
      );
    });
    this.slots.replaceChildren(...bars);
  }

  showParts(vitals, report) {
    const row = (name, value, note) => h("div", { className: "row" }, h("span", {}, name), h("span", {}, value), note ? h("small", {}, note) : "");
    const rows = [];
    for (const [name, process] of [["engine", vitals.engine], ["server", vitals.server]]) {
      if (process) rows.push(row(name, bytes(process.rss_bytes), `${bytes(process.file_bytes)} file pages`));
    }
    const planned = report?.memory.reduce((sum, part) => sum + part.bytes, 0);
    if (planned) {
      const budget = report.memory_budget_bytes;
      const shares = report.memory.map((part, i) => {
        const share = h("span", { className: `share share-${i}`, title: `${part.name}: ${bytes(part.bytes)}` });
        share.style.flexGrow = part.bytes / planned;
        return share;
      });
      const words = report.memory.map((part, i) => h("li", {}, h("i", { className: `share-${i}` }), `${part.name} ${bytes(part.bytes)}`));
      rows.push(row("planned at most", bytes(planned), budget ? `of ${bytes(budget)}` : ""));
      rows.push(h("div", { className: "stack", "aria-hidden": "true" }, shares), h("ul", { className: "legend" }, words));
    }
    this.parts.replaceChildren(...rows);
  }

  showBrake(vitals) {
    const words = [];
    const first = this.samples[0];
    const quota = vitals.quota_throttled_us - first.quota_throttled_us;
    const heat = vitals.heat_throttled - first.heat_throttled;
    if (quota > 0) words.push(`the CPU quota held it back for ${duration(quota / 1e6)}`);
    if (heat > 0) words.push(`the processor slowed down for heat ${plural(heat, "time")}`);
    const known = vitals.quota_throttled_us !== null || vitals.heat_throttled !== null;
    this.brake.hidden = !known;
    this.brake.className = words.length ? "line warn" : "line";
    this.brake.textContent = words.length ? `Throttled: ${words.join("; ")}, since this page watches` : "Not throttled since this page watches";
  }

  /** Changes only with a new start. */
  showPlan(report, model) {
    const key = JSON.stringify([report, model]);
    if (key === this.planned) return;
    this.planned = key;
    if (!report) {
      this.plan.replaceChildren();
      return;
    }
    const facts = model && [
      ["file", model.path],
      ["architecture", `${model.architecture}, ${model.parameters} parameters, ${model.layers} layers, ${model.type}`],
      ["size", bytes(model.file_bytes)],
    ];
    const entry = ([name, value, because]) => h("div", { className: "fact" }, h("dt", {}, name), h("dd", {}, value, because ? h("small", {}, because) : ""));
    const list = (rows) => h("dl", {}, rows.map(entry));
    this.plan.replaceChildren(
      ...report.warnings.map(({ what, todo }) => h("p", { className: "advice" }, h("strong", {}, what), h("span", {}, todo))),
      section("Plan, and why", list(report.plan.map(({ name, value, because }) => [name, value, because]))),
      section("Machine", list(report.machine.map(({ name, value }) => [name, value]))),
      facts ? section("Model", list(facts)) : "",
    );
  }
}

function sample({ now_ms, tokens, vitals }) {
  const cpu = [vitals.server, vitals.engine].filter(Boolean);
  const sum = (name) => (cpu.length ? cpu.reduce((all, process) => all + process[name], 0) : NaN);
  return {
    at: now_ms,
    predicted: tokens.predicted,
    prompt: tokens.prompt,
    cpu_ms: sum("cpu_ms"),
    rss: sum("rss_bytes"),
    energy_j: vitals.energy_j ?? NaN,
    quota_throttled_us: vitals.quota_throttled_us,
    heat_throttled: vitals.heat_throttled,
  };
}

/** Growth per second of a total up to sample `i`; `NaN` where it is not known or began anew. */
function over(samples, i, name) {
  const to = samples[i];
  const from = samples[Math.max(0, i - WINDOW)];
  if (!to || to === from || to.at <= from.at || to[name] < from[name]) return NaN;
  return ((to[name] - from[name]) * 1000) / (to.at - from.at);
}

function section(title, ...content) {
  return h("section", {}, h("h3", {}, title), content);
}

/** A number with its last two minutes. */
function tile(name, unitText) {
  const number = h("span", { className: "number" }, "–");
  const unit = h("span", { className: "unit" }, unitText);
  const area = svg("path", { class: "area" });
  const line = svg("path", { class: "curve" });
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": name }, area, line);
  const root = h("figure", { className: "tile" }, h("figcaption", {}, name), h("p", {}, number, " ", unit), chart);
  const fill = (values, text, floor = 0) => {
    const now = values.at(-1);
    number.textContent = Number.isFinite(now) ? text(now) : "–";
    const most = Math.max(...values, 1e-9);
    const top = (most - floor) * 1.15 || 1;
    const shown = Math.max(values.length, SHORTEST);
    const x = (i) => (WIDTH * (shown - values.length + i)) / (shown - 1);
    const y = (value) => HEIGHT - 2 - ((HEIGHT - 4) * (value - floor)) / top;
    const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`);
    line.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
    area.setAttribute("d", points.length > 1 ? `M${x(0).toFixed(1)},${HEIGHT}L${points.join("L")}L${WIDTH},${HEIGHT}Z` : "");
    chart.setAttribute("aria-label", `${name}: now ${number.textContent} ${unit.textContent}, at most ${text(most)} in the time shown`);
  };
  return { root, unit, fill };
}
