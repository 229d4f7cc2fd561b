// The Default and Notebook tabs: text that the model continues. The server writes; this page shows it from a position on.

import {attempt, get, patch, post, remove} from "./api.js";
import {Blocks} from "./blocks.js";
import {drawDistribution, visible} from "./distribution.js";
import {copyText, h, iconButton, showDialog, toast} from "./dom.js";
import {follow, followWhileShown} from "./events.js";
import {modelReady} from "./waiting.js";
import {say} from "./undo.js";
import {count, t} from "./words.js";

const VIEWS = ["raw", "markdown", "html", "tokens", "next"];
const SAVE_AFTER = 500; // milliseconds after the last key
const HTML_EVERY = 700;

class Notebook {
  constructor(host, name) {
    this.host = host;
    this.name = name;
    this.two = name === "default";
    this.revision = null;
    this.sheet = {};
    this.source = null;
    this.view = "raw";
    this.saving = Promise.resolve(true);
    this.build();
    this.begin();
  }

  // --- what is on the page

  build() {
    const area = (key, rows) => h("textarea", {rows, spellcheck: false, "aria-label": t(key), placeholder: t(`${key}.placeholder`), class: "tl-paper"});
    this.prompt = this.two ? area("writing.prompt", "12") : null;
    this.raw = area(this.two ? "writing.output" : "writing.page", "12");
    for (const paper of [this.prompt, this.raw]) paper?.addEventListener("input", () => this.typed());
    this.shown = h("div", {class: "tl-shown", tabindex: "0", role: "region", "aria-label": t("writing.output"), hidden: true});
    this.tabs = new Map(VIEWS.map((view) => [view, h("button", {type: "button", role: "tab", "aria-selected": String(view === "raw"),
      tabindex: view === "raw" ? "0" : "-1", onclick: () => this.show(view)}, t(`writing.view.${view}`))]));
    const views = h("div", {class: "tl-views", role: "tablist", "aria-label": t("writing.views"), onkeydown: (event) => this.step(event)}, [...this.tabs.values()]);
    this.copy = iconButton("copy", t("copy"), () => copyText(this.raw.value));
    this.status = h("div", {class: "tl-writing-status", role: "status"});
    const button = (name, run, kind = "tl-quiet") => h("button", {type: "button", class: kind, onclick: run}, t(name));
    this.generate = button("writing.generate", () => this.write("generate"), "tl-strong");
    this.stop = button("stop", () => this.halt(), "tl-strong");
    this.onward = button("continue", () => this.write("continue"));
    this.undo = button("undo", () => this.takeBack());
    this.again = button("regenerate", () => this.write("regenerate"));
    this.counting = button("writing.count", () => this.count());
    this.adapter = h("select", {"aria-label": t("adapter"), hidden: true});
    const buttons = h("div", {class: "tl-writing-buttons"}, this.generate, this.stop, this.onward, this.undo, this.again, this.counting, this.adapter);
    const output = [h("div", {class: "tl-writing-head"}, views, this.copy), this.raw, this.shown, this.status];
    this.host.classList.toggle("tl-two", this.two);
    this.host.replaceChildren(...(this.two
      ? [h("section", {class: "tl-left", "aria-label": t("writing.prompt")}, this.prompt, buttons, this.promptMenu()),
        h("section", {class: "tl-right", "aria-label": t("writing.output")}, output)]
      : [h("section", {class: "tl-right", "aria-label": t("writing.page")}, output, buttons, this.promptMenu())]));
    this.host.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.write("generate");
      else if (event.key === "Escape" && this.writing) this.halt();
      else return;
      event.preventDefault();
    });
  }

  promptMenu() {
    this.prompts = h("select", {"aria-label": t("writing.prompts")});
    this.prompts.addEventListener("change", () => this.take());
    return h("div", {class: "tl-prompts"}, this.prompts,
      h("button", {type: "button", class: "tl-quiet", onclick: () => this.keepPrompt()}, t("writing.prompt.save")),
      h("button", {type: "button", class: "tl-quiet", onclick: () => this.dropPrompt()}, t("writing.prompt.delete")));
  }

  // --- the page and the server

  async begin() {
    this.drawPrompts();
    window.addEventListener("tl-changed", () => this.drawPrompts(this.prompts.value));
    await this.look();
    followWhileShown(this.host, {kind: "notebook", of: this.name}, async ({revision}) => {
      await this.saving; // what was typed here is no news
      if (revision !== this.revision) this.look();
    });
    new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) this.drawAdapters();
    }).observe(this.host);
  }

  get visible() {
    return this.host.isConnected && this.host.offsetParent !== null && !document.hidden;
  }

  get writing() {
    return this.sheet.state === "streaming";
  }

  // Show what the server has, unless something typed here is still on its way there.
  async look() {
    if (this.dirty || this.source) return;
    let sheet;
    try {
      sheet = await get(`/writing/${this.name}${this.revision === null ? "" : `?have=${this.revision}`}`);
    } catch {
      return; // the next change tries again
    }
    if (this.dirty || this.source || !("state" in sheet)) return;
    this.draw(sheet);
  }

  draw(sheet) {
    this.sheet = sheet;
    this.revision = sheet.revision;
    if (this.prompt && this.prompt.value !== sheet.prompt) this.prompt.value = sheet.prompt;
    if (this.raw.value !== sheet.text) this.raw.value = sheet.text;
    this.drawButtons();
    this.drawStatus();
    if (this.writing) this.attach(sheet.length);
    else this.drawView();
  }

  typed() {
    this.dirty = true;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), SAVE_AFTER);
    this.drawButtons();
  }

  // Keep what was typed. One after the other, so that each knows the revision of the one before.
  save() {
    clearTimeout(this.timer);
    this.saving = this.saving.then(async () => {
      if (!this.dirty) return true;
      this.dirty = false;
      const body = {revision: this.revision};
      if (this.prompt && this.prompt.value !== this.sheet.prompt) body.prompt = this.prompt.value;
      if (!this.writing && this.raw.value !== this.sheet.text) body.text = this.raw.value;
      const answer = await attempt(() => patch(`/writing/${this.name}`, body));
      if (answer === undefined) {
        this.revision = null;
        await this.look();
        return false;
      }
      this.revision = answer.revision;
      Object.assign(this.sheet, {prompt: body.prompt ?? this.sheet.prompt, text: body.text ?? this.sheet.text, state: body.text === undefined ? this.sheet.state : "whole"});
      if (this.view !== "raw" && !this.writing) this.drawView();
      return true;
    });
    return this.saving;
  }

  async write(how) {
    if (this.writing || this.starting) return;
    this.starting = true;
    this.drawButtons();
    const sheet = (await this.save()) && (await attempt(async () => {
      await modelReady();
      return post(`/writing/${this.name}/write`, {how, adapter: this.adapter.value});
    }));
    this.starting = false;
    if (sheet) this.draw(sheet);
    this.drawButtons();
    if (sheet) this.scrollToEnd();
  }

  halt() {
    return attempt(() => post(`/writing/${this.name}/stop`));
  }

  async takeBack() {
    const before = {prompt: this.prompt?.value, text: this.raw.value};
    if (!(await this.save())) return;
    const sheet = await attempt(() => post(`/writing/${this.name}/undo`));
    if (!sheet) return;
    this.draw(sheet);
    toast(t("writing.undone"), {action: {label: t("writing.redo"), run: () => this.put(before)}});
  }

  // Put a text on the page as if it were typed.
  /** @param {{prompt?: string, text?: string}} texts */
  put({prompt, text}) {
    if (this.writing) return;
    if (prompt !== undefined && this.prompt) this.prompt.value = prompt;
    if (text !== undefined) this.raw.value = text;
    this.typed();
    return this.save();
  }

  // --- a reply on its way

  attach(from) {
    if (this.source) return;
    const markdown = this.view === "markdown";
    if (markdown) this.clearView();
    const topic = {kind: "writing", of: this.name, form: markdown ? "markdown" : "text", after: String(markdown ? 0 : from)};
    this.source = follow(topic, (change, position) => {
      if (change.over) this.ended(change.over);
      else if (change.error) this.detach();
      else if ("t" in change) this.grow(change.t, Number(position));
      else if ("phase" in change) this.drawStatus(change);
      else {
        this.blocks.apply(change);
        this.blocks.drawSoon(() => this.follow(this.shown));
      }
    });
  }

  ended(over) {
    this.detach();
    const sheet = {text: this.raw.value, ...over};
    if (sheet.text.length !== this.raw.value.length && !this.visible) this.raw.value = sheet.text;
    this.draw({...sheet, prompt: this.prompt && this.dirty ? this.prompt.value : sheet.prompt});
  }

  detach() {
    this.source?.close();
    this.source = null;
  }

  grow(text, position) {
    const end = this.atEnd(this.raw);
    this.raw.setRangeText(text, this.raw.value.length, this.raw.value.length, "preserve");
    this.sheet.text = this.raw.value;
    this.sheet.length = position;
    if (end) this.raw.scrollTop = this.raw.scrollHeight;
    if (this.view === "html" && !this.htmlDue) {
      this.htmlDue = setTimeout(() => { this.htmlDue = null; this.drawView(); }, HTML_EVERY);
    }
  }

  atEnd(element) {
    return element.scrollHeight - element.scrollTop - element.clientHeight < 60;
  }

  follow(element) {
    element.scrollTop = element.scrollHeight;
  }

  scrollToEnd() {
    this.raw.scrollTop = this.raw.scrollHeight;
  }

  // --- views

  step(event) {
    const by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!by) return;
    const next = VIEWS[(VIEWS.indexOf(this.view) + by + VIEWS.length) % VIEWS.length];
    this.show(next);
    this.tabs.get(next).focus();
  }

  async show(view) {
    if (!(await this.save())) return;
    const before = this.view;
    this.view = view;
    for (const [name, tab] of this.tabs) {
      tab.setAttribute("aria-selected", String(name === view));
      tab.tabIndex = name === view ? 0 : -1;
    }
    this.raw.hidden = view !== "raw";
    this.shown.hidden = view === "raw";
    if (this.writing && (before === "markdown" || view === "markdown")) {
      this.detach();
      this.revision = null;
      await this.look(); // the rest comes in the form of the new view
    }
    if (!this.writing || view !== "markdown") await this.drawView();
  }

  clearView() {
    this.shown.replaceChildren();
    this.shown.className = `tl-shown tl-shown-${this.view}`;
    this.blocks = new Blocks(this.shown.appendChild(h("div", {class: "tl-body"})));
  }

  async drawView() {
    const {view} = this;
    if (view === "raw") return;
    const text = this.raw.value;
    const whole = (this.prompt?.value ?? "") + text;
    if (view === "markdown" || view === "html") {
      const made = await attempt(() => get(`/writing/${this.name}/rendered?as=${view}`));
      if (!made || view !== this.view) return;
      this.clearView();
      if (view === "markdown") {
        this.blocks.apply({at: 0, b: made.blocks});
        this.blocks.draw();
      } else this.shown.firstChild.innerHTML = made.html; // the server has cleaned it
    } else if (view === "tokens") {
      const made = text ? await attempt(() => post("/writing/tokens", {text})) : {tokens: [], count: 0};
      if (!made || view !== this.view) return;
      this.clearView();
      this.shown.firstChild.replaceChildren(
        h("p", {class: "tl-quiet-text"}, t("writing.tokens", {n: count(made.count)}) + (made.count > made.tokens.length ? ` ${t("writing.tokens.first", {n: count(made.tokens.length)})}` : "")),
        h("ol", {class: "tl-token-list"}, made.tokens.map(([id, piece]) => h("li", {title: `${id}`}, h("span", {}, visible(piece)), h("small", {}, String(id))))));
    } else {
      this.clearView();
      const body = this.shown.firstChild;
      if (!whole) body.append(h("p", {class: "tl-quiet-text"}, t("writing.next.empty")));
      else await drawDistribution(body, whole, {pick: this.writing ? null : (piece) => this.put({text: this.raw.value + piece})});
    }
  }

  async count() {
    if (!(await this.save())) return;
    const parts = await attempt(() => Promise.all([this.prompt?.value ?? "", this.raw.value].map((text) => post("/writing/count", {text}))));
    if (!parts) return;
    const [left, right] = parts;
    this.status.textContent = this.two
      ? t("writing.counted.two", {prompt: count(left.tokens), reply: count(right.tokens), context: count(right.context)})
      : t("writing.counted", {n: count(right.tokens), context: count(right.context)});
  }

  drawButtons() {
    const busy = this.writing || Boolean(this.starting);
    const text = (this.prompt?.value ?? "") + this.raw.value;
    this.generate.hidden = this.writing;
    this.stop.hidden = !this.writing;
    this.generate.disabled = busy || !(this.prompt ?? this.raw).value;
    this.onward.disabled = busy || !text;
    this.undo.disabled = busy || !this.sheet.steps;
    this.again.disabled = busy || !this.sheet.steps;
    this.raw.readOnly = busy;
    this.host.dataset.state = this.sheet.state ?? "";
  }

  drawStatus(live = null) {
    const {state, figures = {}} = this.sheet;
    let words = "";
    if (live?.unsaved) words = t("status.unsaved", {reason: live.unsaved});
    else if (live?.phase === "waiting") words = live.place ? t("status.place", {n: live.place}) : t("status.waiting");
    else if (live?.phase === "reading") words = t("status.reading.part", {done: count(live.read), all: count(live.prompt)});
    else if (live) words = t("status.writing", {n: count(live.n), speed: live.s});
    else if (state === "streaming") words = t("status.waiting");
    else if (figures.error) words = figures.error;
    else if (figures.tokens) {
      const note = {killed: t("note.killed"), length: t("note.length"), stopped: t("note.stopped")}[figures.ending];
      words = [t("figures.tokens", {n: count(figures.tokens)}), figures.tokens_per_second ? t("figures.speed", {n: figures.tokens_per_second.toFixed(1)}) : null,
        figures.seed === undefined ? null : t("figures.seed", {n: figures.seed}), note].filter(Boolean).join(" · ");
    } else if (figures.ending === "killed") words = t("note.killed");
    this.status.textContent = words;
    this.status.classList.toggle("tl-wrong-text", Boolean(!live && figures.error));
  }

  // --- prompts

  async drawPrompts(chosen = "") {
    const turn = this.promptsTurn = {}; // asked for twice, the last one counts
    const names = await attempt(() => get("/writing/prompts"));
    if (!names || turn !== this.promptsTurn) return;
    this.prompts.replaceChildren(h("option", {value: ""}, t("writing.prompts.choose")), ...names.map((name) => h("option", {value: name}, name)));
    this.prompts.value = names.includes(chosen) ? chosen : "";
  }

  // Which adapter writes; there only where the loaded model has some.
  async drawAdapters() {
    const pulse = await attempt(() => get("/pulse"));
    const names = pulse?.engine.adapters ?? [];
    const {value} = this.adapter;
    this.adapter.hidden = !names.length;
    this.adapter.replaceChildren(h("option", {value: ""}, t("adapter.none")), ...names.map((name) => h("option", {value: name}, name)));
    this.adapter.value = names.includes(value) ? value : "";
  }

  async take() {
    const name = this.prompts.value;
    if (!name || this.writing) return;
    const made = await attempt(() => get(`/writing/prompt?name=${encodeURIComponent(name)}`));
    if (!made) return;
    const before = {prompt: this.prompt?.value, text: this.raw.value};
    await this.put(this.two ? {prompt: made.text} : {text: made.text});
    if ((this.two ? before.prompt : before.text).trim()) {
      toast(t("writing.prompt.taken", {name}), {action: {label: t("undo"), run: () => this.put(before)}});
    }
  }

  keepPrompt() {
    showDialog(this.host, t("writing.prompt.save"), [{name: "name", words: t("title"), value: this.prompts.value, help: t("writing.prompt.save.help")}], t("save"),
      async ({name}) => {
        const note = await attempt(() => post("/writing/prompts", {name, text: (this.prompt ?? this.raw).value}));
        if (note === undefined) return;
        await this.drawPrompts(name.trim());
        say(note);
      });
  }

  async dropPrompt() {
    const name = this.prompts.value;
    if (!name) return toast(t("writing.prompts.first"), {wrong: true});
    const note = await attempt(() => remove(`/writing/prompt?name=${encodeURIComponent(name)}`));
    if (note === undefined) return;
    await this.drawPrompts();
    say(note, () => this.drawPrompts(name));
  }
}

export function start(element, name) {
  const host = element.querySelector(".tl-writing");
  if (host.dataset.started) return;
  host.dataset.started = "true";
  new Notebook(host, name);
}
