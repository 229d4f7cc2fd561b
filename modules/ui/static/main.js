// The chat view: one conversation in front, the list beside it, and the server's replies as they come.

import {address, attempt, get, patch, post, remove} from "./api.js";
import {drawSpeakers} from "./characters.js";
import {Composer} from "./composer.js";
import {closeMenu, copyText, h, iconButton, showDialog, toast} from "./dom.js";
import {keyList} from "./keys.js";
import {MessageView} from "./message.js";
import {Sidebar} from "./sidebar.js";
import {TopBar} from "./topbar.js";
import {t} from "./words.js";

const PAGE = 60;
const NEAR_END = 60; // pixels: closer than this counts as reading along

class Chat {
  constructor(host) {
    this.host = host;
    this.current = null;
    this.settings = {};
    this.views = new Map(); // message id → MessageView, in the order shown
    this.streams = new Map(); // message id → EventSource
    this.limit = PAGE;
    this.seen = {};
    this.actions = {
      copy: (id) => this.copy(id),
      edit: (view) => this.edit(view),
      saveEdit: (id, content, answer) => this.saveEdit(id, content, answer),
      regenerate: (id) => this.act(() => post(`/messages/${id}/regenerate`), {follow: true}),
      continueReply: (id) => this.act(() => post(`/messages/${id}/continue`), {follow: true}),
      select: (id) => this.act(() => post(`/messages/${id}/select`)),
      branch: (id) => this.branch(id),
      remove: (id) => this.removeMessage(id),
    };
    this.build();
  }

  build() {
    this.sidebar = new Sidebar(this);
    this.top = new TopBar(this);
    this.composer = new Composer(this);
    this.column = h("div", {class: "tl-column", role: "log", "aria-label": t("conversation"), "aria-live": "off"});
    this.earlier = h("button", {type: "button", class: "tl-quiet tl-earlier", hidden: true, onclick: () => this.showEarlier()}, "");
    this.welcome = h("div", {class: "tl-welcome"});
    this.scroller = h("div", {class: "tl-scroll"}, this.earlier, this.welcome, this.column);
    this.toEnd = iconButton("down", t("to.end"), () => this.scrollToEnd(true), {class: "tl-to-end", hidden: true});
    this.voice = h("div", {class: "tl-hidden", role: "status"});
    this.shade = h("div", {class: "tl-shade", onclick: () => this.sidebar.show(false)});
    const main = h("section", {class: "tl-main", "aria-label": t("conversation")},
      this.top.element, this.scroller, h("div", {class: "tl-bottom"}, this.toEnd, this.composer.element), this.voice);
    this.host.replaceChildren(this.sidebar.element, this.shade, main);
    this.atEnd = true;
    this.scroller.addEventListener("scroll", () => {
      const rest = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight;
      this.atEnd = rest < NEAR_END;
      this.toEnd.hidden = rest < 200;
      if (this.scroller.scrollTop < 300 && !this.earlier.hidden) this.showEarlier();
    }, {passive: true});
    document.addEventListener("keydown", (event) => this.pressed(event));
    document.addEventListener("visibilitychange", () => this.seenAgain());
    window.addEventListener("popstate", () => this.open(this.fromAddress(), null, {push: false}));
  }

  async start() {
    await this.pulse();
    this.sidebar.refresh();
    const id = this.fromAddress();
    if (id) await this.open(id, null, {push: false});
    else this.fresh({push: false});
    const beat = async () => {
      if (!document.hidden) await this.pulse();
      const busy = this.seen.engine?.state === "loading";
      setTimeout(beat, busy ? 700 : 1500);
    };
    setTimeout(beat, 1500);
  }

  fromAddress() {
    return Number(new URLSearchParams(location.search).get("chat")) || null;
  }

  toAddress(id, push) {
    const url = new URL(location.href);
    if (id) url.searchParams.set("chat", id);
    else url.searchParams.delete("chat");
    if (url.href !== location.href) history[push ? "pushState" : "replaceState"](null, "", url);
  }

  // --- what changes by itself: the model, other tabs, other devices

  async pulse() {
    let pulse;
    try {
      pulse = await get(`/pulse${this.current ? `?chat=${this.current}` : ""}`);
    } catch {
      this.host.dataset.offline = "true";
      return;
    }
    this.host.dataset.offline = "false";
    const before = this.seen;
    this.seen = pulse;
    this.top.draw(pulse);
    if (before.engine?.state === "loading" && pulse.engine.state === "empty" && pulse.engine.error) {
      toast(pulse.engine.error, {wrong: true});
    }
    this.drawWelcome();
    this.drawHint();
    if (!before.epoch) return;
    if (before.list !== pulse.list || before.epoch !== pulse.epoch) this.sidebar.refresh();
    if (this.current && (pulse.chat === null && pulse.epoch)) this.gone();
    else if (this.current && pulse.chat !== this.revision) this.refresh();
  }

  gone() {
    this.fresh({push: false});
  }

  seenAgain() {
    if (document.hidden) {
      this.detach(); // a tab that nobody sees needs no stream: it catches up when it is looked at
      return;
    }
    this.pulse();
    if (this.current) this.refresh();
  }

  // --- which chat is shown

  fresh({push = true} = {}) {
    this.leave();
    this.current = null;
    this.revision = null;
    this.settings = {};
    this.toAddress(null, push);
    document.title = "Textloom";
    this.top.character.draw(null);
    this.composer.turnTo(null);
    this.composer.busy(false);
    this.earlier.hidden = true;
    this.sidebar.draw();
    this.drawWelcome();
    this.drawHint();
    this.composer.focus();
  }

  leave() {
    closeMenu();
    this.detach();
    this.views.clear();
    this.column.replaceChildren();
    this.limit = PAGE;
    this.atEnd = true;
  }

  async open(id, messageId = null, {push = true} = {}) {
    if (!id) return this.fresh({push});
    if (id !== this.current) {
      this.leave();
      this.current = id;
      this.toAddress(id, push);
      this.composer.turnTo(id);
      this.composer.busy(false);
      this.sidebar.draw();
    }
    if (!(await this.refresh())) {
      this.fresh({push: false});
      return;
    }
    this.scrollToEnd();
    if (messageId) this.showMessage(messageId);
    else this.composer.focus();
  }

  async showMessage(id) {
    if (!this.views.has(id)) {
      this.limit = 100000;
      await this.refresh();
    }
    if (!this.views.has(id)) await this.actions.select(id);
    const view = this.views.get(id);
    view?.element.scrollIntoView({block: "center"});
    view?.element.classList.add("tl-found");
    setTimeout(() => view?.element.classList.remove("tl-found"), 2500);
  }

  async showEarlier() {
    if (this.loadingEarlier) return;
    this.loadingEarlier = true;
    this.limit += PAGE;
    const before = this.scroller.scrollHeight - this.scroller.scrollTop;
    await this.refresh();
    this.scroller.scrollTop = this.scroller.scrollHeight - before;
    this.loadingEarlier = false;
  }

  // Bring the shown branch up to date; what is there already is left as it is.
  async refresh() {
    const id = this.current;
    const known = {};
    for (const [key, view] of this.views) if (view.view.state !== "streaming") known[key] = view.view.changed;
    const chat = await attempt(() => post(`/${id}/view`, {known, limit: this.limit}));
    if (!chat || id !== this.current) return false;
    this.revision = chat.revision;
    this.settings = chat.settings;
    this.earlier.hidden = !chat.earlier;
    this.earlier.textContent = t("earlier", {n: chat.earlier});
    document.title = chat.title ? `${chat.title} · Textloom` : "Textloom";
    this.reconcile(chat.messages);
    this.drawSpeakers(chat.speakers);
    this.drawWelcome();
    return true;
  }

  drawSpeakers(speakers) {
    this.top.character.draw(speakers);
    drawSpeakers(this.views.values(), speakers);
  }

  reconcile(messages) {
    const wanted = new Set(messages.map((message) => message.id));
    for (const [id, view] of this.views) {
      if (!wanted.has(id)) {
        view.element.remove();
        this.views.delete(id);
        this.detach(id);
      }
    }
    const ordered = new Map();
    let before = null;
    for (const message of messages) {
      let view = this.views.get(message.id);
      if (view) view.update(message);
      else view = new MessageView(message, this.actions);
      const place = before ? before.nextSibling : this.column.firstChild;
      if (place !== view.element) this.column.insertBefore(view.element, place);
      before = view.element;
      ordered.set(message.id, view);
      if (message.state === "streaming") this.attach(message.id);
    }
    this.views = ordered;
    this.column.querySelectorAll(".tl-last").forEach((element) => element.classList.remove("tl-last"));
    before?.classList.add("tl-last");
    this.composer.busy(messages.some((message) => message.state === "streaming"));
    if (this.atEnd) this.scrollToEnd();
  }

  // --- a reply on its way

  attach(id) {
    if (this.streams.has(id) || document.hidden) return;
    const view = this.views.get(id);
    const from = view?.blocks.position ?? 0;
    const source = new EventSource(address(`/replies/${id}/events?from=${from}`));
    this.streams.set(id, source);
    source.onmessage = (event) => {
      this.views.get(id)?.live(JSON.parse(event.data));
      if (this.atEnd) this.scrollToEnd();
    };
    source.addEventListener("over", (event) => {
      this.detach(id);
      const message = JSON.parse(event.data);
      this.views.get(id)?.update(message);
      this.composer.busy(this.streams.size > 0);
      this.voice.textContent = message.figures.error ?? (message.state === "cut" ? t("voice.stopped") : t("voice.finished"));
      if (this.atEnd) this.scrollToEnd();
      this.pulse();
    });
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself, from where it was
      this.detach(id);
      setTimeout(() => { if (this.current) this.refresh(); }, 1000);
    };
  }

  detach(id = null) {
    for (const [key, source] of this.streams) {
      if (id !== null && key !== id) continue;
      source.close();
      this.streams.delete(key);
    }
  }

  scrollToEnd(smooth = false) {
    this.scroller.scrollTo({top: this.scroller.scrollHeight, behavior: smooth ? "smooth" : "instant"});
    this.atEnd = true;
  }

  // --- what the user does

  get leaf() {
    return [...this.views.keys()].at(-1) ?? null;
  }

  async send(text) {
    this.atEnd = true;
    const settings = this.current ? null : this.settings;
    const answer = await attempt(() => post("/send", {chat: this.current, after: this.leaf, content: text, settings}));
    if (!answer) return false;
    if (!this.current) {
      this.current = answer.chat;
      this.toAddress(answer.chat, true);
      this.composer.key = `textloom-draft-${answer.chat}`;
      sessionStorage.removeItem("textloom-draft-new");
    }
    this.voice.textContent = t("voice.sent");
    await this.refresh();
    this.scrollToEnd();
    this.sidebar.refresh();
    return true;
  }

  async stop() {
    for (const id of [...this.streams.keys()]) await attempt(() => post(`/replies/${id}/stop`));
  }

  async act(work, {follow = false} = {}) {
    const answer = await attempt(work);
    if (answer === undefined) return false;
    if (follow) this.atEnd = true;
    await this.refresh();
    return true;
  }

  async copy(id) {
    const answer = await attempt(() => get(`/messages/${id}`));
    if (answer) copyText(answer.content);
  }

  async edit(view) {
    const answer = await attempt(() => get(`/messages/${view.view.id}`));
    if (answer) view.beginEditing(answer.content);
  }

  editLast() {
    const last = [...this.views.values()].reverse().find((view) => view.view.role === "user");
    if (last && !this.composer.writing) this.edit(last);
  }

  saveEdit(id, content, answer) {
    return this.act(() => post(`/messages/${id}/edit`, {content, answer}), {follow: answer});
  }

  async branch(id) {
    const answer = await attempt(() => post(`/messages/${id}/branch`));
    if (!answer) return;
    await this.open(answer.id);
    this.sidebar.refresh();
    toast(t("branched"), {seconds: 4});
  }

  async removeMessage(id) {
    if (!(await this.act(() => remove(`/messages/${id}`)))) return;
    toast(t("message.deleted"), {
      action: {label: t("undo"), run: () => this.act(() => post(`/messages/${id}/restore`))},
    });
  }

  async settingsChanged(values) {
    if (!this.current) this.settings = {...this.settings, ...values};
    else if (await attempt(() => patch(`/${this.current}`, {settings: values})) !== undefined) await this.refresh();
    this.drawHint();
  }

  pressed(event) {
    if (!this.host.offsetParent || document.querySelector("dialog[open]")) return; // another tab or a dialog is in front
    const writing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? "");
    const run = {
      Escape: this.streams.size ? () => this.stop() : null,
      "?": writing ? null : () => showDialog(this.host, t("keys.title"), [], t("close"), () => {}, keyList()),
      "C-S-O": () => this.fresh(),
      "C-S-F": () => { this.sidebar.show(true); this.sidebar.search.focus(); },
      "C-S-S": () => this.sidebar.show(!this.sidebar.visible),
      "C-S-R": () => this.lastReply && this.actions.regenerate(this.lastReply),
      "C-S-C": () => this.lastReply && this.copy(this.lastReply),
    }[(event.ctrlKey || event.metaKey) && event.shiftKey ? `C-S-${event.key.toUpperCase()}` : event.key];
    if (!run) return;
    event.preventDefault();
    run();
  }

  get lastReply() {
    return [...this.views.values()].reverse().find((view) => view.view.role === "assistant")?.view.id;
  }

  openTab(name) {
    document.getElementById(`tab-${name}-button`)?.click();
  }

  // --- words where there is nothing else

  drawWelcome() {
    const empty = !this.views.size;
    this.welcome.hidden = !empty;
    if (!empty || !this.seen.engine) return;
    const {engine, models} = this.seen;
    const key = [engine.state, engine.name, engine.error, engine.progress, models].join("|");
    if (this.welcome.dataset.key === key) return;
    this.welcome.dataset.key = key;
    const parts = [h("h1", {}, t("welcome"))];
    if (engine.state === "ready") {
      parts.push(h("p", {}, t("welcome.ready", {name: engine.name})));
      const ideas = h("div", {class: "tl-ideas"});
      for (const number of [1, 2, 3]) {
        ideas.append(h("button", {type: "button", class: "tl-idea", onclick: () => this.suggest(t(`idea.${number}`))}, t(`idea.${number}`)));
      }
      parts.push(ideas);
    } else if (engine.state === "loading") {
      parts.push(h("p", {}, h("span", {class: "tl-pulse"}), " ", t("welcome.loading", {name: engine.name, progress: engine.progress})));
    } else {
      if (engine.error) parts.push(h("p", {class: "tl-wrong-text"}, engine.error));
      parts.push(h("p", {}, models ? t("welcome.choose") : t("welcome.get")));
      if (!models) parts.push(h("pre", {}, "python download-model.py starter"));
      parts.push(h("button", {type: "button", class: "tl-strong", onclick: () => (models ? this.top.chooseModel() : this.openTab("models"))},
        models ? t("model.choose") : t("model.more")));
    }
    this.welcome.replaceChildren(...parts);
  }

  suggest(text) {
    this.composer.text.value = text;
    this.composer.grow();
    this.composer.drawButton();
    this.composer.text.focus();
  }

  drawHint() {
    const {engine} = this.seen;
    if (!engine) return;
    let words = t("hint");
    let button = null;
    if (engine.state === "ready" && !engine.template && !this.settings.template && this.settings.mode !== "chat") {
      words = t("template.warning", {name: engine.name});
      button = h("button", {type: "button", class: "tl-link", onclick: () => this.top.openSettings()}, t("template.choose"));
    } else if (engine.state === "ready" && engine.template !== "model" && !this.settings.template) {
      words = t("template.guessed", {name: engine.name, template: engine.template});
      button = h("button", {type: "button", class: "tl-link", onclick: () => this.top.openSettings()}, t("template.change"));
    }
    const key = words;
    if (this.composer.hint.dataset.key === key) return;
    this.composer.hint.dataset.key = key;
    this.composer.hint.replaceChildren(h("span", {}, words), ...(button ? [" ", button] : []));
  }
}

export function start(element) {
  const host = element.querySelector(".tl");
  if (host.dataset.started) return;
  host.dataset.started = "true";
  window.textloomChat = new Chat(host);
  window.textloomChat.start();
}
