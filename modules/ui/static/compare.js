// One message answered in two or three ways, side by side, until one is kept.

import {attempt, get, post} from "./api.js";
import {h, showForm, toast} from "./dom.js";
import {MessageView} from "./message.js";
import {modelReady} from "./waiting.js";
import {t} from "./words.js";

const KEPT = "textloom-columns";

// The columns under the conversation: each is a reply of its own.
export class Columns {
  // actions: those of messages, with keep(id)
  constructor(actions, controller) {
    this.actions = actions;
    this.controller = controller;
    this.views = new Map();
    this.frames = new Map();
    this.element = h("section", {class: "tl-columns", "aria-label": t("compare"), hidden: true});
  }

  clear() {
    this.views.clear();
    this.frames.clear();
    this.element.replaceChildren();
    this.element.hidden = true;
  }

  // messages: as the server tells them, in order
  update(messages) {
    const wanted = new Set(messages.map((message) => message.id));
    for (const id of [...this.views.keys()]) {
      if (wanted.has(id)) continue;
      this.frames.get(id).remove();
      this.views.delete(id);
      this.frames.delete(id);
    }
    for (const message of messages) {
      if (this.views.has(message.id)) this.views.get(message.id).update(message);
      else this.add(message);
    }
    this.element.hidden = !messages.length;
    this.element.style.setProperty("--columns", messages.length);
  }

  add(message) {
    const view = new MessageView(message, this.actions, this.controller, {compared: true});
    const words = columnWords(message.extra.compare ?? {});
    const frame = h("div", {class: "tl-compared", role: "group", "aria-label": words},
      h("header", {}, h("h3", {}, words),
        h("button", {type: "button", class: "tl-keep", onclick: () => this.actions.keep(message.id)}, t("compare.keep"))),
      view.element);
    this.views.set(message.id, view);
    this.frames.set(message.id, frame);
    this.element.append(frame);
  }
}

// What a column does otherwise, for people.
export function columnWords({adapter, adapter_strength: strength, preset, template}) {
  const words = [];
  if (adapter !== undefined) words.push(adapter ? `+ ${adapter}${strength !== undefined && strength !== 1 ? ` × ${strength}` : ""}` : t("compare.base"));
  if (preset) words.push(preset);
  if (template) words.push(template);
  return words.join(" · ") || t("compare.as.is");
}

// Ask what to compare, and begin. draft: {content, files, after}; without content the last message of the user is answered again.
export async function chooseColumns(chat, draft) {
  const menus = await attempt(() => get("/menus"));
  if (!menus) return false;
  const engine = chat.seen.engine ?? {};
  const adapters = engine.adapters ?? [];
  const before = readKept();
  const columns = [0, 1, 2].map((number) => column(number, menus, adapters, before?.[number] ?? first(number, adapters, menus)));
  const third = h("input", {type: "checkbox", id: "tl-third"});
  third.checked = Boolean(before?.[2]);
  const draw = () => { columns[2].element.hidden = !third.checked; };
  third.addEventListener("change", draw);
  draw();
  const content = h("div", {},
    h("p", {class: "tl-prompt-facts"}, draft.content || draft.files?.length ? t("compare.help.draft") : t("compare.help.again")),
    h("div", {class: "tl-column-choices"}, columns.map((one) => one.element)),
    h("label", {class: "tl-check"}, third, t("compare.third")));
  return new Promise((resolve) => {
    showForm(chat.host, t("compare"), content, t("compare.start"), async () => {
      const chosen = columns.filter((_, number) => number < 2 || third.checked).map((one) => one.read());
      localStorage.setItem(KEPT, JSON.stringify(chosen));
      resolve(await begin(chat, draft, chosen));
    }, () => resolve(false));
  });
}

async function begin(chat, draft, columns) {
  const settings = chat.current ? null : chat.settings;
  const answer = await attempt(async () => {
    await modelReady();
    return post("/compare", {chat: chat.current, ...draft, settings, columns});
  });
  if (!answer) return false;
  await chat.began(answer.chat);
  if (window.innerWidth < 900) toast(t("compare.swipe"), {seconds: 4});
  return true;
}

function readKept() {
  try {
    return JSON.parse(localStorage.getItem(KEPT));
  } catch {
    return null;
  }
}

// The first time: the base model beside the newest adapter, or the preset in use beside a surer one.
function first(number, adapters, menus) {
  if (adapters.length) return number ? {adapter: adapters.at(-number) ?? adapters[0]} : {adapter: ""};
  return number ? {preset: menus.presets.includes("Deterministic") && number === 1 ? "Deterministic" : menus.presets[0]} : {};
}

function column(number, menus, adapters, chosen) {
  const select = (words, choices, value) => {
    const control = h("select", {}, choices.map(([key, text]) => h("option", {value: key}, text)));
    control.value = choices.some(([key]) => key === value) ? value : choices[0][0];
    return {control, label: h("label", {class: "tl-field"}, h("span", {}, words), control)};
  };
  const same = ["*", t("compare.same")];
  const names = (list) => list.map((name) => [name, name]);
  const adapter = adapters.length ? select(t("adapter"), [same, ["", t("adapter.none")], ...names(adapters)], chosen.adapter ?? "*") : null;
  const preset = select(t("preset"), [same, ...names(menus.presets)], chosen.preset ?? "*");
  const template = select(t("template"), [same, ...names(menus.templates)], chosen.template ?? "*");
  return {
    element: h("fieldset", {class: "tl-column-choice"}, h("legend", {}, t("compare.column", {n: number + 1})),
      adapter?.label ?? null, preset.label, template.label),
    read() {
      const values = {};
      for (const [key, choice] of Object.entries({adapter, preset, template})) {
        if (choice && choice.control.value !== "*") values[key] = choice.control.value;
      }
      return values;
    },
  };
}
