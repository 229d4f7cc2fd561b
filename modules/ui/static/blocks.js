// The blocks of one model message in the page: what is finished stays, only the end is drawn again.

import {copyText, h, iconButton} from "./dom.js";
import {t} from "./words.js";

export class Blocks {
  constructor(body) {
    this.body = body;
    this.items = []; // {start, kind, html, element, drawn: the HTML that `element` shows}
    this.undrawn = new Set();
    this.frame = null;
    this.thinking = null;
  }

  get position() {
    return this.items.at(-1)?.start ?? 0;
  }

  // [keep, text, ending], or {last: that}: the last one keeps its first `keep` characters and its last `ending`.
  // {at}: those from `at` on are gone. b: what follows. Nothing of it is seen before `draw`.
  apply(change) {
    const {last: growth, at = Infinity, b = []} = Array.isArray(change) ? {last: change} : change;
    const last = this.items.at(-1);
    if (growth && last) {
      const [keep, text, ending = 0] = growth;
      last.html = last.html.slice(0, keep) + text + last.html.slice(last.html.length - ending);
      this.undrawn.add(last);
    }
    while (this.items.length && this.items.at(-1).start >= at) {
      const gone = this.items.pop();
      gone.element.remove();
      this.undrawn.delete(gone);
    }
    for (const [start, kind, html] of b) {
      const item = {start, kind, html, element: h("div", {class: "tl-block"}), drawn: ""};
      this.holder(kind).append(item.element);
      this.items.push(item);
      this.undrawn.add(item);
    }
    if (this.thinking && !this.items.some((item) => item.kind === "thinking")) {
      this.thinking.remove();
      this.thinking = null;
    }
  }

  // Put into the page what has been applied. The server has made this HTML and cleaned it.
  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    for (const item of this.undrawn) {
      const {element, html} = item;
      const grown = appendText(element, item.drawn, html);
      item.drawn = html;
      if (grown) continue;
      element.innerHTML = html;
      for (const code of element.querySelectorAll("pre")) addCopyButton(code);
      for (const table of element.querySelectorAll("table")) {
        const frame = h("div", {class: "tl-table", tabindex: "0", role: "region", "aria-label": t("table")});
        table.replaceWith(frame);
        frame.append(table);
      }
    }
    this.undrawn.clear();
  }

  // The same before the next frame, however much is applied until then: a page that falls behind draws less often.
  // drawn: called after it.
  drawSoon(drawn = () => {}) {
    this.frame ??= requestAnimationFrame(() => {
      this.draw();
      drawn();
    });
  }

  holder(kind) {
    if (kind !== "thinking") return this.body;
    if (!this.thinking) {
      this.thinking = h("details", {class: "tl-thinking"}, h("summary", {}, t("thinking")));
      this.body.prepend(this.thinking);
    }
    return this.thinking;
  }

  // Say whether the thinking still goes on: the reply is being written, and has no other text yet.
  thinks(writing) {
    if (!this.thinking) return;
    const going = writing && this.items.every((item) => item.kind === "thinking");
    this.thinking.classList.toggle("tl-going", going);
    this.thinking.firstChild.textContent = t(going ? "thinking.now" : "thinking");
  }
}

// Make `html` of the element that shows `drawn`, where it only has more text at its end, before the tags that close:
// what is there stays, and what is selected in it. Returns whether that was so.
function appendText(element, drawn, html) {
  const closing = drawn.match(/(<\/[a-z0-9]+>)*$/)[0];
  const head = drawn.slice(0, drawn.length - closing.length);
  if (!head || head.endsWith(">") || !html.startsWith(head) || !html.endsWith(closing)) return false;
  const more = html.slice(head.length, html.length - closing.length);
  let end = element;
  while (end.lastChild) end = end.lastChild;
  if (/[<&]/.test(more) || !(end instanceof Text)) return false;
  end.appendData(more);
  return true;
}

function addCopyButton(code) {
  const frame = h("div", {class: "tl-code"});
  code.replaceWith(frame);
  const label = h("div", {class: "tl-code-head"}, h("span", {}, code.dataset.language || ""));
  label.append(iconButton("copy", t("copy.code"), () => copyText(code.textContent)));
  code.tabIndex = 0;
  frame.append(label, code);
}
