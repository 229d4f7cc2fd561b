// The tree of a chat: one line for each message, branches side by side; a click goes there.

import {attempt, get} from "./api.js";
import {h, icon} from "./dom.js";
import {openSheet} from "./sheet.js";
import {t} from "./words.js";

const LANE = 18;
const ROW = 36;

// chat: the chat view of main.js
export async function showMap(chat) {
  if (!chat.current) return;
  const view = await attempt(() => get(`/${chat.current}/map`));
  if (!view) return;
  const rows = laidOut(view.messages);
  const shown = new Set(view.path);
  const width = (Math.max(0, ...rows.map((row) => row.lane)) + 1) * LANE;
  const list = h("ul", {class: "tl-map", role: "tree", "aria-label": t("map")});
  const byId = new Map(rows.map((row) => [row.message.id, row]));
  for (const row of rows) {
    const {message} = row;
    const go = h("button", {type: "button", "aria-current": message.id === view.path.at(-1) ? "true" : undefined,
      onclick: () => { pane.close(); chat.showMessage(message.id); }},
      h("span", {class: "tl-map-role"}, t(`role.${message.role}`)), h("span", {class: "tl-map-words"}, message.words || "…"),
      message.good ? icon("star") : null);
    go.style.paddingInlineStart = `${width + 8}px`;
    list.append(h("li", {role: "treeitem", "aria-level": String(row.depth), "aria-selected": String(shown.has(message.id)),
      class: shown.has(message.id) ? "tl-map-shown" : ""}, go));
  }
  const lines = drawn(rows, byId, shown, width);
  const frame = h("div", {class: "tl-map-frame"}, lines, list);
  list.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll("button")];
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
  });
  const pane = openSheet(chat.host, t("map"), {wide: true});
  pane.body.append(h("p", {class: "tl-prompt-facts"}, t("map.help")), frame);
  (list.querySelector("[aria-current]") ?? list.querySelector("button"))?.focus();
}

// Depth first; the first answer goes on in the lane of its question, each other one takes a new lane to the right.
function laidOut(messages) {
  const children = new Map();
  for (const message of messages) {
    if (!children.has(message.parent)) children.set(message.parent, []);
    children.get(message.parent).push(message);
  }
  const rows = [];
  let lanes = 0;
  const stack = (children.get(null) ?? []).map((message, index) => ({message, lane: index ? null : 0, depth: 1})).reverse();
  while (stack.length) {
    const {message, lane, depth} = stack.pop();
    const row = {message, lane: lane ?? ++lanes, depth};
    rows.push(row);
    stack.push(...(children.get(message.id) ?? []).map((child, index) => ({message: child, lane: index ? null : row.lane, depth: depth + 1})).reverse());
  }
  return rows;
}

function drawn(rows, byId, shown, width) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", String(width));
  svg.setAttribute("height", String(rows.length * ROW));
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("tl-map-lines");
  rows.forEach((row, index) => { row.x = row.lane * LANE + 10; row.y = index * ROW + ROW / 2; });
  const add = (tag, attributes, kind) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (kind) element.classList.add(kind);
    svg.append(element);
  };
  for (const row of rows) {
    const above = byId.get(row.message.parent);
    if (!above) continue;
    const kind = shown.has(row.message.id) ? "tl-line-shown" : null;
    if (above.x === row.x) add("path", {d: `M${above.x} ${above.y}V${row.y}`}, kind);
    else add("path", {d: `M${above.x} ${above.y}C${above.x} ${above.y + ROW / 2} ${row.x} ${above.y} ${row.x} ${above.y + ROW / 2 + 6}V${row.y}`}, kind);
  }
  for (const row of rows) add("circle", {cx: row.x, cy: row.y, r: 5}, shown.has(row.message.id) ? "tl-dot-shown" : null);
  return svg;
}
