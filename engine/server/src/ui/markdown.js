// Markdown as models write it, into elements: code, lists, headings, quotes, tables, bold, italic, links. A text becomes
// text nodes and nothing else, so whatever a model writes stays text.

import { copyButton, h } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+(.*))?$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const NESTED_AT_MOST = 12;

/** Cuts a text into top-level blocks, `{kind, source, ..}`. Blocks never change once the next one has begun. */
function blocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const from = at;
    const line = lines[at];
    const fence = FENCE.exec(line);
    let block;
    if (line.trim() === "") {
      at += 1;
      continue;
    } else if (fence) {
      const closing = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
      at += 1;
      while (at < lines.length && !closing.test(lines[at])) at += 1;
      block = { kind: "code", language: fence[2], text: lines.slice(from + 1, at).join("\n") };
      at += 1;
    } else if (HEADING.test(line)) {
      const [, marks, words] = HEADING.exec(line);
      block = { kind: "heading", level: marks.length, text: words };
      at += 1;
    } else if (RULE.test(line)) {
      block = { kind: "rule" };
      at += 1;
    } else if (QUOTE.test(line)) {
      while (at < lines.length && QUOTE.test(lines[at])) at += 1;
      block = { kind: "quote", text: lines.slice(from, at).map((line) => QUOTE.exec(line)[1]).join("\n") };
    } else if (ITEM.test(line)) {
      at = endOfList(lines, at);
      block = { kind: "list", lines: lines.slice(from, at) };
    } else if (line.includes("|") && TABLE_RULE.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) {
      at += 2;
      while (at < lines.length && lines[at].includes("|")) at += 1;
      block = { kind: "table", rows: [line, ...lines.slice(from + 2, at)] };
    } else {
      at += 1;
      while (at < lines.length && lines[at].trim() !== "" && !begins(lines[at])) at += 1;
      block = { kind: "paragraph", text: lines.slice(from, at).join("\n") };
    }
    block.source = lines.slice(from, at).join("\n");
    found.push(block);
  }
  return found;
}

const begins = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

/** A list goes on with items, indented lines, and single empty lines between those. */
function endOfList(lines, at) {
  let end = at + 1;
  for (let i = at + 1; i < lines.length; i += 1) {
    const line = lines[i];
    if (line.trim() === "") {
      if ((lines[i + 1] ?? "").trim() === "") break;
      continue;
    }
    const follows = i === end || /^\s{2,}/.test(line) || (ITEM.test(line) && !RULE.test(line));
    const lazy = i === end && !ITEM.test(line) && !/^\s{2,}/.test(line) && begins(line);
    if (!follows || lazy) break;
    end = i + 1;
  }
  return end;
}

function build(block, depth) {
  switch (block.kind) {
    case "code": {
      const code = h("code", {}, block.text);
      const head = h("div", { className: "head" }, h("span", {}, block.language || "text"), copyButton("Copy the code", () => block.text));
      return h("figure", { className: "code" }, head, h("pre", { tabIndex: 0, "aria-label": "Code" }, code));
    }
    case "heading":
      return h(`h${Math.min(block.level + 2, 6)}`, {}, inline(block.text));
    case "rule":
      return h("hr");
    case "quote":
      return h("blockquote", {}, children(block.text, depth));
    case "list":
      return list(block.lines, depth);
    case "table":
      return table(block.rows);
    default:
      return h("p", {}, inline(block.text));
  }
}

const children = (text, depth) =>
  depth >= NESTED_AT_MOST ? [h("p", {}, text)] : blocks(text).map((block) => build(block, depth + 1));

function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const ordered = /\d/.test(first[2]);
  const indent = first[1].length;
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent + 1) items.push([item[3] ?? ""]);
    else items.at(-1).push(line);
  }
  const start = ordered ? Number.parseInt(first[2], 10) : undefined;
  const body = items.map((item) => {
    const rest = item.slice(1);
    const margin = Math.min(...rest.filter((line) => line.trim()).map((line) => /^\s*/.exec(line)[0].length));
    const text = [item[0], ...rest.map((line) => line.slice(Number.isFinite(margin) ? margin : 0))].join("\n");
    const parts = children(text, depth);
    const simple = parts.map((part) => (part.tagName === "P" ? [...part.childNodes] : part));
    return h("li", {}, simple.flat());
  });
  return ordered ? h("ol", { start }, body) : h("ul", {}, body);
}

function table(rows) {
  const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const [head, ...rest] = rows.map(cells);
  const line = (row, tag) => h("tr", {}, head.map((_, i) => h(tag, {}, inline(row[i] ?? ""))));
  const body = h("table", {}, h("thead", {}, line(head, "th")), h("tbody", {}, rest.map((row) => line(row, "td"))));
  return h("div", { className: "table", tabIndex: 0, role: "region", "aria-label": "Table" }, body);
}

const INLINE = [
  [/`+/y, codeSpan],
  [/\\([\\`*_{}[\]()#+\-.!|~>])/y, (match) => match[1]],
  [/\*\*(?=\S)([^]*?\S)\*\*/y, (match) => h("strong", {}, inline(match[1]))],
  [/__(?=\S)([^]*?\S)__(?!\w)/y, (match) => h("strong", {}, inline(match[1]))],
  [/\*(?=[^\s*])([^*]*[^\s*])\*/y, (match) => h("em", {}, inline(match[1]))],
  [/_(?=[^\s_])([^_]*[^\s_])_(?!\w)/y, (match) => h("em", {}, inline(match[1]))],
  [/~~(?=\S)([^]*?\S)~~/y, (match) => h("del", {}, inline(match[1]))],
  [/\[([^\]\n]+)\]\(\s*<?([^\s)>]+)>?(?:\s+"[^"]*")?\s*\)/y, (match) => link(match[2], inline(match[1])) ?? match[0]],
  [/<?(https?:\/\/[^\s<>]*[^\s<>.,;:!?)"'\]])>?/y, (match) => link(match[1], [match[1]]) ?? match[0]],
];
const SPECIAL = /[`*_~[\\<h\n]/g;

/** Text with emphasis, code and links as nodes. */
function inline(text) {
  const out = [];
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) out.push(plain);
    plain = "";
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at >= text.length) break;
    if (text[at] === "\n") {
      if (/ {2,}$|\\$/.test(plain)) {
        plain = plain.replace(/ +$|\\$/, "");
        flush();
        out.push(h("br"));
      } else plain += "\n";
      at += 1;
      continue;
    }
    const within = at > 0 && /\w/.test(text[at - 1]) && (text[at] === "_" || text[at] === "h");
    const hit = within ? null : firstHit(text, at);
    if (hit) {
      flush();
      out.push(hit.node);
      at = hit.end;
    } else {
      plain += text[at];
      at += 1;
    }
  }
  flush();
  return out;
}

function firstHit(text, at) {
  for (const [pattern, make] of INLINE) {
    pattern.lastIndex = at;
    const match = pattern.exec(text);
    if (!match) continue;
    const end = pattern.lastIndex;
    const made = make(match, text);
    if (made === null) continue;
    return made.node ? made : { node: made, end };
  }
  return null;
}

/** From a run of backticks to the next run of the same length. */
function codeSpan(match, text) {
  const ticks = match[0];
  const from = match.index + ticks.length;
  const closing = new RegExp(`(?<!\`)${ticks}(?!\`)`, "g");
  closing.lastIndex = from;
  const close = closing.exec(text);
  if (!close) return null;
  const code = text.slice(from, close.index).replace(/\n/g, " ").replace(/^ (.*[^ ].*) $/, "$1");
  return { node: h("code", {}, code), end: close.index + ticks.length };
}

/** Only addresses that open a page or a letter. */
function link(address, label) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  return h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, label);
}

/** A view of a growing text: `update(text)` builds again only the blocks that changed. */
export function markdownView() {
  const root = h("div", { className: "prose" });
  let shown = [];
  const update = (text) => {
    const next = blocks(text);
    let same = 0;
    while (same < shown.length && same < next.length && shown[same].source === next[same].source && shown[same].kind === next[same].kind) same += 1;
    for (const old of shown.slice(same)) old.node.remove();
    const fresh = next.slice(same).map((block) => ({ ...block, node: build(block, 0) }));
    root.append(...fresh.map((block) => block.node));
    shown = [...shown.slice(0, same), ...fresh];
  };
  return { root, update };
}
