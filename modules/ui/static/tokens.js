// The tokens of a reply, coloured by how likely each was; a click shows what else could have stood there.

import {attempt, get, post} from "./api.js";
import {h, showMenu} from "./dom.js";
import {percent, t} from "./words.js";

// Spaces and line ends as signs, where a token is shown by itself.
export const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";

export class TokenView {
  // controller: {act(work, {follow})}; id: the message
  constructor(controller, id) {
    this.controller = controller;
    this.id = id;
    this.element = h("div", {class: "tl-tokens", role: "group", tabindex: "0", "aria-label": t("tokens.group")});
    this.element.addEventListener("click", (event) => this.open(event.target.closest(".tl-token")));
    this.element.addEventListener("keydown", (event) => this.pressed(event));
    this.parts = [];
  }

  // Everything that is kept, in order. Returns whether there is anything.
  async load({compute = false} = {}) {
    const answer = await attempt(() => (compute ? post : get)(`/messages/${this.id}/tokens`));
    if (!answer) return false;
    this.computable = Boolean(answer.computable);
    const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.place : null;
    this.element.replaceChildren();
    this.parts = [];
    for (const part of answer.parts) {
      if ("text" in part) this.element.append(h("span", {}, part.text));
      else this.add(part.at, part.tokens);
    }
    if (focused) this.element.querySelector(`[data-place="${focused}"]`)?.focus();
    return this.parts.length > 0;
  }

  // While the reply is written: rows from number `from` on.
  grow({at, from, tokens}) {
    if (from === 0 && this.parts.at(-1)?.at === at) this.remove(this.parts.pop());
    this.add(at, tokens);
  }

  remove(part) {
    for (const element of part.elements) element.remove();
  }

  add(at, rows) {
    if (this.parts.at(-1)?.at !== at) this.parts.push({at, rows: [], elements: []});
    const part = this.parts.at(-1);
    const stretch = this.parts.length - 1;
    const fresh = document.createDocumentFragment();
    for (const row of rows) {
      const element = this.draw(row, stretch, part.rows.length);
      part.rows.push(row);
      part.elements.push(element);
      fresh.append(element);
    }
    this.element.append(fresh);
  }

  draw([text, own, probability], stretch, index) {
    const mark = !text && own && !own.includes("�");
    const words = probability === null ? visible(own || text) : `${visible(own || text)} · ${percent(probability)}`;
    const element = h("span", {class: `tl-token${mark ? " tl-mark" : ""}`, role: "button", tabindex: "-1", title: words, "aria-label": words,
      "data-place": `${stretch}.${index}`}, text || (mark ? own : ""));
    if (probability !== null) element.style.setProperty("--doubt", `${Math.round((1 - Math.sqrt(probability)) * 100)}%`);
    return element;
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
    const all = [...this.element.querySelectorAll(".tl-token")];
    const at = all.indexOf(document.activeElement);
    const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1}[event.key];
    if (to !== undefined) all[Math.max(0, Math.min(all.length - 1, to))]?.focus();
    else if ((event.key === "Enter" || event.key === " ") && at >= 0) this.open(all[at]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

export function tokenLegend() {
  return h("div", {class: "tl-legend"}, h("span", {}, t("tokens.likely")), h("span", {class: "tl-scale", "aria-hidden": "true"}),
    h("span", {}, t("tokens.unlikely")), h("span", {}, t("tokens.hint")));
}
