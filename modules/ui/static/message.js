// One message: its text or its tokens, its versions, what it took, and what can be done with it.

import {drawPictures} from "./attach.js";
import {Blocks} from "./blocks.js";
import {h, icon, iconButton, keyed, showMenu} from "./dom.js";
import {drawFiles} from "./text_files.js";
import {TokenView, tokenLegend} from "./tokens.js";
import {count, t, when} from "./words.js";

export class MessageView {
  // actions: what the tools do; controller: {act(work, options)} for the token view
  // compared: it is one of several columns, and what makes other versions waits until one is kept
  constructor(view, actions, controller, {compared = false} = {}) {
    this.actions = actions;
    this.controller = controller;
    this.compared = compared;
    this.body = h("div", {class: "tl-body"});
    this.status = h("div", {class: "tl-status", "aria-live": "off"});
    this.tools = h("div", {class: "tl-tools", role: "group", "aria-label": t("message.actions")});
    this.figures = h("div", {class: "tl-figures"});
    this.note = h("div", {class: "tl-note"});
    this.element = h("article", {class: "tl-message", tabindex: "-1"},
      this.body, this.status, this.note, h("div", {class: "tl-foot"}, this.tools, this.figures));
    this.blocks = new Blocks(this.body);
    this.update(view);
  }

  update(view) {
    const before = this.view;
    this.view = {...before, ...view};
    const mine = view.role !== "assistant";
    this.element.dataset.id = view.id;
    this.element.dataset.role = view.role;
    this.element.dataset.state = view.state;
    this.element.setAttribute("aria-label", mine ? t(`role.${view.role}`) : view.model ?? t("role.assistant"));
    drawPictures(this);
    drawFiles(this);
    if ("text" in view) this.body.textContent = view.text;
    if ("blocks" in view && view.state !== "streaming") this.settle(view.blocks);
    this.element.setAttribute("aria-busy", String(view.state === "streaming"));
    this.blocks.thinks(view.state === "streaming");
    if (this.tokens && before?.changed !== view.changed && view.state !== "streaming") this.reloadTokens();
    this.drawTools();
    this.drawFigures();
  }

  // The finished text: blocks that are the same stay in the page as they are.
  settle(blocks) {
    const items = this.blocks.items;
    let same = 0;
    while (same < items.length && same < blocks.length && items[same].start === blocks[same][0]
      && items[same].kind === blocks[same][1] && items[same].html === blocks[same][2]) same += 1;
    if (same === items.length && same === blocks.length) return;
    const starts = [...items.slice(same).map((item) => item.start), ...blocks.slice(same).map(([start]) => start)];
    this.blocks.apply({at: Math.min(...starts), b: blocks.slice(same)});
    this.blocks.draw();
  }

  drawTools() {
    const {view, actions} = this;
    // A menu may stand under one of them.
    keyed(this.tools, [view.id, view.state === "streaming", view.versions, view.extra?.good], () => this.drawToolsOf(view, actions));
  }

  drawToolsOf(view, actions) {
    const tools = [];
    if (view.versions.length > 1 && !this.compared) {
      const at = view.versions.indexOf(view.id);
      tools.push(
        h("span", {class: "tl-versions"},
          iconButton("left", t("version.previous"), () => actions.select(view.versions[at - 1]), {disabled: at === 0}),
          h("span", {"aria-label": t("version.of", {at: at + 1, all: view.versions.length})}, `${at + 1}/${view.versions.length}`),
          iconButton("right", t("version.next"), () => actions.select(view.versions[at + 1]), {disabled: at === view.versions.length - 1})),
      );
    }
    if (view.state !== "streaming") {
      const reply = view.role === "assistant";
      const good = Boolean(view.extra?.good);
      tools.push(iconButton("copy", t("copy"), () => actions.copy(view.id)));
      if (!this.compared) {
        tools.push(iconButton("edit", t("edit"), () => actions.edit(this), {class: "tl-roomy"}));
        tools.push(iconButton("again", reply ? t("regenerate") : t("answer"), () => actions.regenerate(view.id)));
      }
      if (reply) {
        tools.push(iconButton("onward", t("continue"), () => actions.continueReply(view.id), {class: "tl-roomy"}));
        tools.push(iconButton("star", good ? t("mark.good.off") : t("mark.good"), () => actions.markGood(view.id, !good),
          {class: good ? "tl-on" : "tl-roomy", "aria-pressed": String(good)}));
      }
      tools.push(iconButton("more", t("message.more"), (event) => this.menu(event.currentTarget), {"aria-haspopup": "menu", "aria-expanded": "false"}));
    }
    const focused = this.tools.contains(document.activeElement) ? document.activeElement.ariaLabel : null;
    this.tools.replaceChildren(...tools);
    if (focused) [...this.tools.querySelectorAll("button")].find((button) => button.ariaLabel === focused)?.focus();
  }

  // What there is no room for, or is wanted seldom. On a narrow page everything is here.
  menu(anchor) {
    const {view, actions} = this;
    const reply = view.role === "assistant";
    const good = Boolean(view.extra?.good);
    const narrow = matchMedia("(max-width: 899px)").matches;
    const others = view.versions.filter((id) => id !== view.id);
    const items = [];
    if (narrow && !this.compared) items.push({label: t("edit"), icon: "edit", run: () => actions.edit(this)});
    if (narrow && reply) {
      items.push(
        {label: t("continue"), icon: "onward", run: () => actions.continueReply(view.id)},
        {label: good ? t("mark.good.off") : t("mark.good"), icon: "star", run: () => actions.markGood(view.id, !good)});
    }
    if (reply && others.length) items.push({label: t("mark.better"), icon: "balance", run: () => actions.prefer(anchor, view)});
    if (narrow && items.length) items.push(null);
    items.push({label: t("branch"), icon: "branch", run: () => actions.branch(view.id)});
    if (!this.compared) items.push({label: t("compare.answers"), icon: "columns", run: () => actions.compare(view)});
    if (others.length) items.push({label: t("diff"), icon: "diff", run: () => actions.diff(view)});
    items.push({label: reply ? t("prompt.of.reply") : t("prompt.of.message"), icon: "eye", run: () => actions.prompt(view.id)});
    if (reply) items.push({label: this.tokens ? t("tokens.hide") : t("tokens"), icon: "heat", run: () => this.toggleTokens()});
    items.push(null);
    if (reply && !this.compared) items.push({label: t("again.exactly"), icon: "repeat", run: () => actions.runAgain(view.id)});
    items.push(
      {label: t("copy.curl"), icon: "code", run: () => actions.copyProgram(view.id, "curl")},
      {label: t("copy.python"), icon: "code", run: () => actions.copyProgram(view.id, "python")},
      null,
      {label: t("delete"), icon: "trash", danger: true, run: () => actions.remove(view.id)});
    showMenu(anchor, items);
  }

  drawFigures() {
    const {view} = this;
    const figures = view.figures ?? {};
    const words = [];
    if (view.role === "assistant" && view.state !== "streaming") {
      if (figures.tokens) words.push(t("figures.tokens", {n: count(figures.tokens)}));
      if (figures.tokens_per_second) words.push(t("figures.speed", {n: figures.tokens_per_second.toFixed(1)}));
      if (figures.first_token) words.push(t("figures.first", {n: figures.first_token.toFixed(2)}));
      if (figures.prompt_tokens) {
        words.push(figures.cached_tokens
          ? t("figures.prompt.cached", {n: count(figures.prompt_tokens), cached: count(figures.cached_tokens)})
          : t("figures.prompt", {n: count(figures.prompt_tokens)}));
      }
      if (view.model) words.push(view.model + this.adapterWords(figures));
      if (figures.preset) words.push(figures.preset);
      if (figures.edited) words.push(t("figures.edited"));
    }
    this.figures.replaceChildren(...words.map((text) => h("span", {}, text)));
    this.figures.title = [when(view.created), figures.seed !== undefined ? t("figures.seed", {n: figures.seed}) : "",
      figures.prompt_hash ? t("figures.hash", {n: figures.prompt_hash}) : ""].filter(Boolean).join(" · ");
    this.drawNote(figures);
    if (view.state !== "streaming") this.status.replaceChildren();
  }

  adapterWords(figures) {
    if (!figures.adapter) return "";
    const strength = figures.adapter_strength;
    return ` + ${figures.adapter}${strength && strength !== 1 ? ` × ${strength}` : ""}`;
  }

  drawNote(figures) {
    const {view} = this;
    const parts = [];
    if (figures.dropped_messages) parts.push(h("span", {}, t("note.dropped", {n: figures.dropped_messages})));
    if (view.state !== "streaming" && view.role === "assistant") {
      const reason = figures.error ?? {stopped: t("note.stopped"), killed: t("note.killed"), length: t("note.length")}[figures.ending];
      if (reason) {
        parts.push(h("span", {class: figures.error ? "tl-wrong-text" : ""}, reason));
        parts.push(h("button", {type: "button", class: "tl-link", onclick: () => this.actions.continueReply(view.id)}, t("continue")));
      }
      if (view.again) parts.push(h("span", {}, t(againWords(view.again))), ...(view.again.same_text || !view.versions.includes(view.again.of) ? [] :
        [h("button", {type: "button", class: "tl-link", onclick: () => this.actions.diff(view, view.again.of)}, t("diff"))]));
      const over = (view.extra?.better_than ?? []).map((id) => view.versions.indexOf(id) + 1).filter(Boolean);
      if (over.length) parts.push(h("span", {}, t("mark.better.than", {n: over.join(", ")})));
      if (this.missingSince) {
        parts.push(h("span", {}, t("tokens.none")));
        if (this.computable) {
          parts.push(h("button", {type: "button", class: "tl-link", onclick: () => this.showTokens({compute: true})}, t("tokens.compute")));
        }
      }
    }
    this.note.replaceChildren(...parts);
  }

  // --- tokens in place of the text

  // Show them; where none are kept, say so. compute: have the model score the text first. live: more are on their way.
  async showTokens({compute = false, live = false} = {}) {
    const {view} = this;
    if (view.role !== "assistant" || this.loadingTokens) return;
    if (!compute && (this.tokens || this.missingSince === view.changed)) return;
    this.loadingTokens = true;
    const tokens = new TokenView(this.controller, view.id);
    const there = await tokens.load({compute});
    this.loadingTokens = false;
    if (!there && !live) {
      this.missingSince = view.changed;
      this.computable = tokens.computable;
      this.drawNote(view.figures ?? {});
      return;
    }
    this.tokens?.element.remove();
    this.legend?.remove();
    this.missingSince = null;
    this.tokens = tokens;
    this.legend = tokenLegend();
    this.body.hidden = true;
    this.body.after(tokens.element, this.legend);
    this.drawNote(view.figures ?? {});
  }

  async reloadTokens() {
    await this.growing;
    await this.tokens?.load();
  }

  hideTokens() {
    this.tokens?.element.remove();
    this.legend?.remove();
    this.tokens = this.legend = this.missingSince = null;
    this.alone = false;
    this.body.hidden = false;
    this.drawNote(this.view.figures ?? {});
  }

  // For this message only, whatever the others show.
  async toggleTokens() {
    if (this.tokens) return this.hideTokens();
    this.alone = true;
    await this.showTokens();
    if (!this.tokens && this.computable) await this.showTokens({compute: true});
  }

  // --- while the reply is written

  live(change) {
    if ("phase" in change) this.drawStatus(change);
    else if ("tokens" in change) {
      this.growing = (this.growing ?? Promise.resolve()).then(async () => {
        if (!this.tokens) await this.showTokens({live: true});
        this.tokens?.grow(change);
      });
    }
    else {
      this.blocks.apply(change);
      this.blocks.thinks(true);
      this.blocks.drawSoon();
    }
  }

  // While the text grows, its dot beats with what is told of it: one that moves by itself has the page painted 60 times a second.
  drawStatus(status) {
    const writing = !["waiting", "reading"].includes(status.phase);
    this.beat = writing && !this.beat;
    const dot = h("span", {class: writing ? `tl-beat${this.beat ? " tl-on" : ""}` : "tl-pulse", "aria-hidden": "true"});
    let words = "";
    if (status.unsaved) words = t("status.unsaved", {reason: status.unsaved});
    else if (status.phase === "waiting") words = status.place ? t("status.place", {n: status.place}) : t("status.waiting");
    else if (status.phase === "reading") {
      words = status.prompt ? t("status.reading.part", {done: count(status.read), all: count(status.prompt)}) : t("status.reading");
    } else words = status.s ? t("status.writing", {n: count(status.n), speed: status.s.toFixed(1)}) : "";
    this.status.replaceChildren(dot, h("span", {}, words));
  }

  // --- editing in place

  beginEditing(text) {
    if (this.editor) return;
    const area = h("textarea", {"aria-label": t("edit"), class: "tl-edit"});
    area.value = text;
    const mine = this.view.role === "user";
    const close = () => {
      this.editor.remove();
      this.editor = null;
      this.element.classList.remove("tl-editing");
    };
    const save = async (answer) => {
      if (area.value.trim() === text.trim() && !answer) return close();
      if (await this.actions.saveEdit(this.view.id, area.value, answer)) close();
    };
    const grow = () => {
      area.style.height = "auto";
      area.style.height = `${area.scrollHeight + 2}px`;
    };
    area.addEventListener("input", grow);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); close(); }
      if (event.key === "Enter" && !event.shiftKey && mine) { event.preventDefault(); save(true); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); save(mine); }
    });
    this.editor = h("div", {class: "tl-editor"}, area,
      h("div", {class: "tl-editor-foot"},
        h("button", {type: "button", class: "tl-quiet", onclick: close}, t("cancel")),
        h("button", {type: "button", class: mine ? "tl-quiet" : "tl-strong", onclick: () => save(false)}, t("save")),
        mine ? h("button", {type: "button", class: "tl-strong", onclick: () => save(true)}, icon("send"), t("save.send")) : null));
    this.element.classList.add("tl-editing");
    this.body.after(this.editor);
    grow();
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

function againWords({same_text, same_prompt}) {
  if (same_text) return "again.same";
  return same_prompt === false ? "again.prompt" : "again.different";
}
