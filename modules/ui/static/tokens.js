// The tokens of a reply, coloured by how likely each was; a click shows what else could have stood there.

import {attempt, get, post} from "./api.js";
import {h, showMenu} from "./dom.js";
import {percent, t} from "./words.js";

// Spaces and line ends as signs, where a token is shown by itself.
export const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";

const PAGE = 120; // tokens that are drawn together

// A token's text where it stands. Marks, such as the end of a turn, have none in the reply, and are named.
// A part of a character has no text of its own either: it is named by its bytes.
const isPart = (own) => /^(\\x[0-9a-f]{2})+$|�/.test(own);
const isMark = ([text, own]) => !text && Boolean(own) && !isPart(own);
const shown = (row) => row[0] || (isMark(row) ? row[1] : "");

// A long reply is plain text at first: each page of it gets its tokens when it comes into sight.
export class TokenView {
  // controller: {act(work, {follow})}; id: the message
  constructor(controller, id) {
    this.controller = controller;
    this.id = id;
    this.element = h("div", {class: "tl-tokens", role: "group", tabindex: "0", "aria-label": t("tokens.group")});
    this.element.addEventListener("click", (event) => this.open(event.target.closest(".tl-token")));
    this.element.addEventListener("keydown", (event) => this.pressed(event));
    this.parts = []; // {at, rows, pages}
    this.pages = new WeakMap(); // element → page
    this.sight = new IntersectionObserver((entries) => {
      for (const {isIntersecting, target} of entries) if (isIntersecting) this.drawPage(this.pages.get(target));
    }, {scrollMargin: "300px"});
  }

  // Everything that is kept, in order. Returns whether there is anything.
  async load({compute = false} = {}) {
    const answer = await attempt(() => (compute ? post : get)(`/messages/${this.id}/tokens`));
    if (!answer) return false;
    this.computable = Boolean(answer.computable);
    const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.place : null;
    this.sight.disconnect();
    this.element.replaceChildren();
    this.parts = [];
    for (const part of answer.parts) {
      if ("text" in part) this.element.append(h("span", {}, part.text));
      else this.add(part.at, part.tokens);
    }
    if (focused) this.focus(...focused.split(".").map(Number));
    return this.parts.length > 0;
  }

  // While the reply is written: rows from number `from` on.
  grow({at, from, tokens}) {
    if (from === 0 && this.parts.at(-1)?.at === at) this.remove(this.parts.pop());
    this.add(at, tokens);
  }

  remove(part) {
    for (const page of part.pages) page.element.remove();
  }

  add(at, rows) {
    if (this.parts.at(-1)?.at !== at) this.parts.push({at, rows: [], pages: []});
    const part = this.parts.at(-1);
    for (let done = 0; done < rows.length;) {
      const from = part.rows.length;
      if (from % PAGE === 0) part.pages.push(this.addPage(this.parts.length - 1, from));
      const fresh = rows.slice(done, done + PAGE - (from % PAGE));
      const page = part.pages.at(-1);
      part.rows.push(...fresh);
      page.element.append(...(page.drawn ? fresh.map((row, place) => this.draw(row, page.stretch, from + place)) : [fresh.map(shown).join("")]));
      done += fresh.length;
    }
  }

  addPage(stretch, first) {
    const page = {element: h("span"), stretch, first, drawn: false};
    this.pages.set(page.element, page);
    this.element.append(page.element);
    this.sight.observe(page.element);
    return page;
  }

  drawPage(page) {
    if (page.drawn) return;
    page.drawn = true;
    this.sight.unobserve(page.element);
    const rows = this.parts[page.stretch].rows.slice(page.first, page.first + PAGE);
    page.element.replaceChildren(...rows.map((row, place) => this.draw(row, page.stretch, page.first + place)));
  }

  draw(row, stretch, index) {
    const [text, own, probability] = row;
    const words = probability === null ? visible(own || text) : `${visible(own || text)} · ${percent(probability)}`;
    const element = h("span", {class: `tl-token${isMark(row) ? " tl-mark" : ""}`, role: "button", tabindex: "-1", title: words, "aria-label": words,
      "data-place": `${stretch}.${index}`}, shown(row));
    if (probability !== null) element.style.setProperty("--doubt", `${Math.round((1 - Math.sqrt(probability)) * 100)}%`);
    return element;
  }

  focus(stretch, index) {
    const page = this.parts[stretch]?.pages[Math.floor(index / PAGE)];
    if (!page) return;
    this.drawPage(page);
    page.element.children[index - page.first]?.focus();
  }

  open(element) {
    if (!element) return;
    const [stretch, index] = element.dataset.place.split(".").map(Number);
    const [, own, made, others, chosen] = this.parts[stretch].rows[index];
    const items = others.map(([id, text, probability], alternative) => ({
      label: visible(text),
      note: percent(probability),
      share: probability,
      checked: id === chosen && text === own,
      disabled: id === chosen && text === own,
      run: () => this.controller.act(() => post(`/messages/${this.id}/choose`, {stretch, index, alternative}), {follow: true}),
    }));
    if (!items.some((item) => item.checked)) {
      items.push({label: visible(own), note: made === null ? "" : percent(made), share: made ?? 0, checked: true, disabled: true, run: () => {}});
    }
    showMenu(element, items, {title: t("tokens.choose")});
  }

  pressed(event) {
    const here = document.activeElement.dataset.place;
    const at = here ? this.number(...here.split(".").map(Number)) : -1;
    const end = this.parts.reduce((sum, part) => sum + part.rows.length, 0) - 1;
    const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: end}[event.key];
    if (to !== undefined) this.focusNumber(Math.max(0, Math.min(end, to)));
    else if ((event.key === "Enter" || event.key === " ") && at >= 0) this.open(document.activeElement);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // Tokens are counted through all stretches.
  number(stretch, index) {
    return this.parts.slice(0, stretch).reduce((sum, part) => sum + part.rows.length, index);
  }

  focusNumber(number) {
    for (const [stretch, part] of this.parts.entries()) {
      if (number < part.rows.length) return this.focus(stretch, number);
      number -= part.rows.length;
    }
  }
}

export function tokenLegend() {
  return h("div", {class: "tl-legend"}, h("span", {}, t("tokens.likely")), h("span", {class: "tl-scale", "aria-hidden": "true"}),
    h("span", {}, t("tokens.unlikely")), h("span", {}, t("tokens.hint")));
}
