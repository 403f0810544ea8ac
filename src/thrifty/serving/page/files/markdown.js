// Markdown as DOM nodes. Texts become text nodes and nothing else: no HTML of an answer is ever parsed.

const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^\s{0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^\s{0,3}>\s?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^\s*](?:[^*]*[^\s*])?)\*\*|\*([^\s*](?:[^*]*[^\s*])?)\*|\[([^\]]*)\]\(([^\s()]+)\)/;
const DEPTH = 12;

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

/** Put a text's nodes in the place of what a node holds. */
export function render(node, text) {
  node.replaceChildren(...blocks(text.replaceAll("\r\n", "\n").split("\n"), 0));
}

function blocks(lines, depth) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const [node, next] = block(lines, at, depth);
    if (node) nodes.push(node);
    at = next;
  }
  return nodes;
}

/** The block that begins at a line, and the line after it. */
function block(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  const fence = FENCE.exec(line);
  if (fence) return fenced(lines, at, fence[1], fence[2]);
  const heading = HEADING.exec(line);
  if (heading) return [element(heading[1].length < 3 ? "h3" : "h4", ...inline(heading[2], 0)), at + 1];
  if (RULE.test(line)) return [element("hr"), at + 1];
  if (depth < DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "") && lines[at + 1].includes("|")) return table(lines, at);
  return paragraph(lines, at, depth);
}

function fenced(lines, at, mark, language) {
  let end = at + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(mark) && !lines[end].trim().replaceAll(mark[0], ""))) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  const copy = element("button", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
  });
  const head = element("div", element("span", language || "text"), copy);
  head.className = "code-head";
  const pre = element("pre", element("code", text));
  pre.tabIndex = 0;
  const box = element("div", head, pre);
  box.className = "code";
  return [box, end + 1];
}

function quote(lines, at, depth) {
  const inner = [];
  for (; at < lines.length && QUOTE.test(lines[at]); at += 1) inner.push(QUOTE.exec(lines[at])[1]);
  return [element("blockquote", ...blocks(inner, depth + 1)), at];
}

function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(mark);
  const node = element(isOrdered ? "ol" : "ul");
  if (isOrdered) node.start = parseInt(mark, 10);
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== isOrdered) break;
    const inner = [item[3]];
    for (at += 1; at < lines.length; at += 1) {
      const deeper = /^\s*/.exec(lines[at])[0].length > indent.length;
      const isGap = !lines[at].trim() && (/^\s*/.exec(lines[at + 1] ?? "x")[0].length > indent.length);
      if (!(lines[at].trim() && deeper) && !isGap) break;
      inner.push(lines[at].slice(Math.min(indent.length + 2, /^\s*/.exec(lines[at])[0].length)));
    }
    const children = blocks(inner, depth + 1);
    node.append(element("li", ...(children.length === 1 && children[0].tagName === "P" ? children[0].childNodes : children)));
    while (at + 1 < lines.length && !lines[at].trim() && ITEM.exec(lines[at + 1])?.[1].length === indent.length) at += 1;
  }
  return [node, at];
}

function table(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, kind) => element("tr", ...cells(line).map((cell) => element(kind, ...inline(cell, 0))));
  const head = element("thead", row(lines[at], "th"));
  const body = element("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) body.append(row(lines[at], "td"));
  const box = element("div", element("table", head, body));
  box.className = "scroll";
  return [box, at];
}

function paragraph(lines, at, depth) {
  const own = [];
  do {
    own.push(lines[at].trim());
    at += 1;
  } while (at < lines.length && lines[at].trim() && !FENCE.test(lines[at]) && !HEADING.test(lines[at]) &&
    !RULE.test(lines[at]) && !(depth < DEPTH && (QUOTE.test(lines[at]) || ITEM.test(lines[at]))));
  return [element("p", ...inline(own.join("\n"), 0)), at];
}

function inline(text, depth) {
  const nodes = [];
  while (text) {
    const match = depth < DEPTH ? INLINE.exec(text) : null;
    if (!match) break;
    if (match.index) nodes.push(text.slice(0, match.index));
    nodes.push(marked(match, depth));
    text = text.slice(match.index + match[0].length);
  }
  return text ? [...nodes, text] : nodes;
}

function marked([whole, ticks, code, strong, weak, label, target], depth) {
  if (ticks) return element("code", code);
  if (strong !== undefined) return element("strong", ...inline(strong, depth + 1));
  if (weak !== undefined) return element("em", ...inline(weak, depth + 1));
  if (!/^https?:\/\//i.test(target)) return whole; // no other scheme becomes a link
  const link = element("a", ...inline(label || target, depth + 1));
  link.href = target;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  return link;
}
