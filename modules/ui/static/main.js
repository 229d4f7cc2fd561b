// The chat view: one conversation in front, the list beside it, and the server's replies as they come.

import {attempt, get, patch, post} from "./api.js";
import {drawSpeakers} from "./characters.js";
import {Columns} from "./compare.js";
import {Composer} from "./composer.js";
import {ComposerMenu} from "./composer_menu.js";
import {ContextBar} from "./context.js";
import {closeMenu, h, iconButton, keyed, showDialog, toast} from "./dom.js";
import {follow, onConnection} from "./events.js";
import {keyList} from "./keys.js";
import {showMap} from "./map.js";
import {MessageView} from "./message.js";
import {messageActions} from "./message_actions.js";
import {showPrompt} from "./prompt.js";
import {Sidebar} from "./sidebar.js";
import {Starter} from "./starter.js";
import {TopBar} from "./topbar.js";
import {refuseOtherDrops} from "./transfer.js";
import {Waiting, comesSoon, waitsFor} from "./waiting.js";
import {loadingWords, t} from "./words.js";

const PAGE = 60;
const NEAR_END = 60; // pixels: closer than this counts as reading along

export class Chat {
  constructor(host) {
    this.host = host;
    this.current = null;
    this.settings = {};
    this.views = new Map(); // message id → MessageView, in the order shown
    this.streams = new Map(); // message id → the reply as it is followed on the server
    this.limit = PAGE;
    /** @type {any} */
    this.seen = {}; // the status as the server told it last
    this.actions = messageActions(this);
    this.build();
  }

  build() {
    this.sidebar = new Sidebar(this);
    this.top = new TopBar(this);
    this.columns = new Columns(this.actions, this);
    this.context = new ContextBar(this);
    this.composerMenu = new ComposerMenu(this);
    this.composer = new Composer(this, {menu: this.composerMenu.button, chip: this.composerMenu.chip, context: this.context.element});
    this.column = h("div", {class: "tl-column", role: "log", "aria-label": t("conversation"), "aria-live": "off"});
    this.earlier = h("button", {type: "button", class: "tl-quiet tl-earlier", hidden: true, onclick: () => this.showEarlier()}, "");
    this.welcome = h("div", {class: "tl-welcome"});
    this.starter = new Starter(this);
    this.waiting = new Waiting(this);
    this.scroller = h("div", {class: "tl-scroll"}, this.earlier, this.welcome, this.column, this.columns.element, this.waiting.element);
    this.toEnd = iconButton("down", t("to.end"), () => this.scrollToEnd(true), {class: "tl-to-end", hidden: true});
    this.voice = h("div", {class: "tl-hidden", role: "status"});
    this.shade = h("div", {class: "tl-shade", onclick: () => this.sidebar.show(false)});
    const main = h("section", {class: "tl-main", "aria-label": t("conversation")},
      this.top.element, this.scroller, h("div", {class: "tl-bottom"}, this.toEnd, this.composer.element), this.voice);
    this.host.replaceChildren(this.sidebar.element, this.shade, main);
    this.composer.attached.watch(main);
    refuseOtherDrops();
    this.atEnd = true;
    this.scrolledTo = 0;
    this.scroller.addEventListener("scroll", () => {
      const {scrollHeight, scrollTop, clientHeight} = this.scroller;
      const rest = scrollHeight - scrollTop - clientHeight;
      // Only a way up leaves the end: on the way down the text may grow faster than the page scrolls.
      const up = scrollTop < this.scrolledTo;
      this.atEnd = rest < (up ? 2 : NEAR_END) || (this.atEnd && !up);
      this.scrolledTo = scrollTop;
      this.toEnd.hidden = rest < 200;
      if (scrollTop < 300 && !this.earlier.hidden) this.showEarlier();
    }, {passive: true});
    // What grows (a reply, pictures that arrive) leaves people at the end who read along. This is told after the layout of a
    // frame and before it is painted: the page is laid out once for both.
    const growth = new ResizeObserver(() => { if (this.atEnd) this.scrollToEnd(); });
    growth.observe(this.column);
    growth.observe(this.columns.element);
    document.addEventListener("keydown", (event) => this.pressed(event));
    window.addEventListener("popstate", () => this.open(this.fromAddress(), null, {push: false}));
  }

  async start() {
    onConnection((there) => { this.host.dataset.offline = String(!there); });
    const id = this.fromAddress();
    if (id) this.open(id, null, {push: false});
    else this.fresh({push: false});
    follow({kind: "status"}, (status) => this.statusChanged(status), {hidden: () => Boolean(this.waiting.message)});
    follow({kind: "list"}, () => this.sidebar.refresh());
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

  // Ask for the status now, where the next step depends on it.
  async pulse() {
    const status = await get("/pulse").catch(() => null);
    if (status) this.statusChanged(status);
  }

  statusChanged(status) {
    const before = this.seen;
    this.seen = status;
    this.top.draw(status);
    if (before.tokens !== status.tokens) this.drawTokens();
    if (before.engine?.state !== status.engine.state || before.preset !== status.preset) this.context.soon(0);
    this.composer.attached.allow(status);
    const was = before.engine;
    if (was && status.engine.state === "empty" && status.engine.error && (was.state === "loading" || was.loads !== status.engine.loads)) {
      toast(status.engine.error, {wrong: true});
    }
    this.drawWelcome();
    this.drawHint();
    this.waiting.look(status);
    if (before.epoch && before.epoch !== status.epoch && this.current) this.refresh(); // what ran on the server before has ended
  }

  // The chat that is open was changed here or elsewhere.
  chatChanged(id, {revision}) {
    if (id !== this.current) return;
    if (revision === null) this.fresh({push: false});
    else if (revision !== this.revision) this.refresh();
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
    this.waiting.draw();
    this.earlier.hidden = true;
    this.sidebar.draw();
    this.drawWelcome();
    this.drawHint();
    this.composerMenu.draw();
    this.context.soon(0);
    this.composer.focus();
  }

  leave() {
    closeMenu();
    this.waiting.element.hidden = true;
    this.detach();
    this.following?.close();
    this.following = null;
    this.views.clear();
    this.column.replaceChildren();
    this.columns.clear();
    this.shownLeaf = null;
    this.limit = PAGE;
    this.atEnd = true;
  }

  async open(id, messageId = null, {push = true} = {}) {
    if (!id) return this.fresh({push});
    if (id !== this.current) {
      this.leave();
      this.turnTo(id);
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

  turnTo(id) {
    this.current = id;
    this.following = follow({kind: "chat", of: String(id)}, (change) => this.chatChanged(id, change));
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
    for (const [key, view] of [...this.views, ...this.columns.views]) if (view.view.state !== "streaming") known[key] = view.view.changed;
    const chat = await attempt(() => post(`/${id}/view`, {known, limit: this.limit}));
    if (!chat || id !== this.current) return false;
    this.revision = chat.revision;
    this.settings = chat.settings;
    this.earlier.hidden = !chat.earlier;
    this.earlier.textContent = t("earlier", {n: chat.earlier});
    document.title = chat.title ? `${chat.title} · Textloom` : "Textloom";
    this.reconcile(chat.messages, chat.columns);
    this.drawSpeakers(chat.speakers);
    this.waiting.draw();
    this.drawWelcome();
    this.composerMenu.draw();
    this.context.soon(200);
    return true;
  }

  drawSpeakers(speakers) {
    this.top.character.draw(speakers);
    drawSpeakers(this.views.values(), speakers);
  }

  // columns: the replies that take the place of the last message while they are compared
  reconcile(all, columns) {
    this.shownLeaf = all.at(-1)?.id ?? null;
    const messages = columns.length ? all.slice(0, -1) : all;
    const wanted = new Set(messages.map((message) => message.id));
    for (const [id, view] of this.views) {
      if (!wanted.has(id)) {
        view.element.remove();
        this.views.delete(id);
        if (!columns.some((column) => column.id === id)) this.detach(id);
      }
    }
    const ordered = new Map();
    let before = null;
    for (const message of messages) {
      let view = this.views.get(message.id);
      if (view) view.update(message);
      else view = new MessageView(message, this.actions, this);
      const place = before ? before.nextSibling : this.column.firstChild;
      if (place !== view.element) this.column.insertBefore(view.element, place);
      before = view.element;
      ordered.set(message.id, view);
    }
    this.views = ordered;
    this.columns.update(columns);
    const writing = [...messages, ...columns].filter((message) => message.state === "streaming");
    for (const message of writing) this.attach(message.id);
    for (const id of [...this.streams.keys()]) if (!this.viewOf(id)) this.detach(id);
    for (const element of this.column.querySelectorAll(".tl-last")) element.classList.remove("tl-last");
    before?.classList.add("tl-last");
    this.composer.busy(writing.length > 0);
    this.drawTokens();
    if (this.atEnd) this.scrollToEnd();
  }

  // --- a reply on its way

  attach(id) {
    if (this.streams.has(id)) return;
    const after = String(this.viewOf(id)?.blocks.position ?? 0);
    const reply = follow({kind: "reply", of: String(id), after, tokens: Boolean(this.seen.tokens)}, (change) => {
      if (change.over) this.replyEnded(id, change.over);
      else if (change.error) this.detach(id);
      else {
        this.viewOf(id)?.live(change);
        if (change.p && this.streams.size === 1) this.context.live(change.p, change.n);
      }
    });
    this.streams.set(id, reply);
  }

  replyEnded(id, message) {
    this.detach(id);
    this.viewOf(id)?.update(message);
    this.drawTokens();
    this.context.soon(100);
    this.composer.busy(this.streams.size > 0);
    this.voice.textContent = message.figures.error ?? (message.state === "cut" ? t("voice.stopped") : t("voice.finished"));
    if (this.atEnd) this.scrollToEnd();
  }

  detach(id = null) {
    for (const [key, reply] of this.streams) {
      if (id !== null && key !== id) continue;
      reply.close();
      this.streams.delete(key);
    }
  }

  scrollToEnd(smooth = false) {
    this.scroller.scrollTo({top: this.scroller.scrollHeight, behavior: smooth ? "smooth" : "instant"});
    this.scrolledTo = this.scroller.scrollTop;
    this.atEnd = true;
  }

  // --- what the user does

  get leaf() {
    return this.shownLeaf ?? null;
  }

  viewOf(id) {
    return this.views.get(id) ?? this.columns.views.get(id);
  }

  get busyReplies() {
    return this.streams.size > 0;
  }

  // What is about to be said, and where.
  draft() {
    return {chat: this.current, after: this.leaf, content: this.composer.text.value, files: this.composer.attached.files, settings: this.current ? null : this.settings};
  }

  drafted() {
    this.context.soon();
  }

  // The tokens of replies in place of their text, or not.
  drawTokens() {
    const last = this.lastReply?.id;
    for (const view of [...this.views.values(), ...this.columns.views.values()]) {
      const {tokens, state, id} = view.view;
      if (this.seen.tokens && state !== "streaming" && (tokens || id === last)) view.showTokens();
      else if (!this.seen.tokens && !view.alone && (view.tokens || view.missingSince)) view.hideTokens();
    }
  }

  async switchTokens() {
    const on = !this.seen.tokens;
    if (await attempt(() => post("/token-view", {on})) === undefined) return;
    await this.pulse();
    if (on) toast(t("tokens.on"), {seconds: 4});
  }

  showDraftPrompt() {
    return showPrompt(this.host, () => post("/prompt", this.draft()));
  }

  // A chat has got something new: show it, wherever one was.
  async began(id) {
    if (!this.current) {
      this.turnTo(id);
      this.toAddress(id, true);
      this.composer.follow(id);
    }
    this.atEnd = true;
    await this.refresh();
    this.scrollToEnd();
    this.sidebar.refresh();
  }

  async send(text, attached = {}) {
    this.atEnd = true;
    const settings = this.current ? null : this.settings;
    const message = {chat: this.current, after: this.leaf, content: text, ...attached, settings};
    if (this.keeps(message)) return true;
    const answer = await attempt(async () => {
      try {
        return await post("/send", message);
      } catch (error) {
        if (error.status === 503) await this.pulse(); // a load may have begun just now
        if (!this.keeps(message)) throw error;
        return null;
      }
    });
    if (!answer) return answer === null;
    this.voice.textContent = t("voice.sent");
    await this.began(answer.chat);
    return true;
  }

  // A model is on its way: the message waits for it.
  keeps(message) {
    if (!this.seen.engine || !comesSoon(this.seen) || !this.waiting.keep(message)) return false;
    this.voice.textContent = t("waiting.sent", {name: waitsFor(this.seen)});
    this.scrollToEnd();
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

  editLast() {
    const last = [...this.views.values()].reverse().find((view) => view.view.role === "user");
    if (last && !this.composer.writing) this.actions.edit(last);
  }

  async settingsChanged(values) {
    if (!this.current) this.settings = {...this.settings, ...values};
    else if (await attempt(() => patch(`/${this.current}`, {settings: values})) !== undefined) await this.refresh();
    this.drawHint();
    this.composerMenu.draw();
    this.context.soon(0);
  }

  pressed(event) {
    if (!this.host.offsetParent || document.querySelector("dialog[open]")) return; // another tab or a dialog is in front
    const writing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? "");
    const reply = this.lastReply;
    const run = {
      Escape: this.composer.lent ?? (this.streams.size ? () => this.stop() : null),
      "?": writing ? null : () => this.showKeys(),
      "C-S-O": () => this.fresh(),
      "C-S-F": () => { this.sidebar.show(true); this.sidebar.search.focus(); },
      "C-S-S": () => this.sidebar.show(!this.sidebar.visible),
      "C-S-R": () => reply && this.actions.regenerate(reply.id),
      "C-S-C": () => reply && this.actions.copy(reply.id),
      "C-S-ENTER": () => reply && this.actions.continueReply(reply.id),
      "C-S-<": () => this.step(-1),
      "C-S-,": () => this.step(-1),
      "C-S->": () => this.step(1),
      "C-S-.": () => this.step(1),
      "C-S-K": () => this.composerMenu.compare(),
      "C-S-U": () => this.leaf && this.composerMenu.impersonate(),
      "C-S-BACKSPACE": () => this.composerMenu.removeLast(),
      "C-S-G": () => reply && this.actions.markGood(reply.id, !reply.extra?.good),
      "C-S-D": () => reply?.versions.length > 1 && this.actions.diff(reply),
      "C-S-L": () => this.switchTokens(),
      "C-S-E": () => this.showDraftPrompt(),
      "C-S-M": () => showMap(this),
    }[(event.ctrlKey || event.metaKey) && event.shiftKey ? `C-S-${event.key.toUpperCase()}` : event.key];
    if (!run) return;
    event.preventDefault();
    run();
  }

  get lastReply() {
    return [...this.views.values()].reverse().find((view) => view.view.role === "assistant")?.view;
  }

  // To the version before or after the last reply.
  step(by) {
    const reply = this.lastReply;
    const id = reply?.versions[reply.versions.indexOf(reply.id) + by];
    if (id) this.actions.select(id);
  }

  showKeys() {
    showDialog(this.host, t("keys.title"), [], t("close"), () => {}, keyList());
  }

  openTab(name) {
    window.TEXTLOOM.openTab(name);
  }

  // --- words where there is nothing else

  drawWelcome() {
    const empty = !this.views.size;
    this.welcome.hidden = !empty;
    if (!empty || !this.seen.engine) return;
    const {engine, models, starter, admin} = this.seen;
    this.starter.draw(starter, admin);
    keyed(this.welcome, [engine.state, engine.name, engine.error, engine.progress, models], () => this.drawWelcomeOf(engine, models));
  }

  drawWelcomeOf(engine, models) {
    const parts = [h("h1", {}, t("welcome"))];
    if (["ready", "asleep"].includes(engine.state)) {
      if (engine.error) parts.push(h("p", {class: "tl-wrong-text"}, t("welcome.gone", {name: engine.name, error: engine.error})));
      else parts.push(h("p", {}, t(`welcome.${engine.state}`, {name: engine.name})));
      const ideas = h("div", {class: "tl-ideas"});
      for (const number of [1, 2, 3]) {
        ideas.append(h("button", {type: "button", class: "tl-idea", onclick: () => this.suggest(t(`idea.${number}`))}, t(`idea.${number}`)));
      }
      parts.push(ideas);
    } else if (engine.state === "loading") {
      parts.push(h("p", {}, h("span", {class: "tl-pulse"}), " ", loadingWords(engine)));
    } else {
      if (engine.error) parts.push(h("p", {class: "tl-wrong-text"}, engine.error));
      if (models) {
        parts.push(h("p", {}, t("welcome.choose")),
          h("button", {type: "button", class: "tl-strong", onclick: () => this.top.chooseModel()}, t("model.choose")));
      } else parts.push(this.starter.element);
    }
    this.welcome.replaceChildren(...parts);
  }

  suggest(text) {
    this.composer.fill(text);
  }

  drawHint() {
    const {engine} = this.seen;
    if (!engine) return;
    let words = t("hint");
    let button = null;
    if (engine.state === "ready" && engine.problem && !this.settings.template && this.settings.mode !== "chat") {
      words = t("template.problem", {name: engine.name, problem: engine.problem});
      button = h("button", {type: "button", class: "tl-link", onclick: () => this.top.openSettings()}, t("template.choose"));
    } else if (engine.state === "ready" && !engine.template && !this.settings.template && this.settings.mode !== "chat") {
      words = t("template.warning", {name: engine.name});
      button = h("button", {type: "button", class: "tl-link", onclick: () => this.top.openSettings()}, t("template.choose"));
    } else if (engine.state === "ready" && engine.template !== "model" && !this.settings.template) {
      words = t("template.guessed", {name: engine.name, template: engine.template});
      button = h("button", {type: "button", class: "tl-link", onclick: () => this.top.openSettings()}, t("template.change"));
    } else if (engine.state === "ready" && engine.no_place_for?.includes("system") && this.settings.system_prompt && !this.settings.template && (this.settings.mode ?? "instruct") === "instruct") {
      words = t("template.no_system", {name: engine.name});
    }
    const {hint} = this.composer;
    keyed(hint, words, () => hint.replaceChildren(h("span", {}, words), ...(button ? [" ", button] : [])));
  }
}
