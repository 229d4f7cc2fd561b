// One message: its text, its versions, what it took, and what can be done with it.

import {Blocks} from "./blocks.js";
import {h, icon, iconButton} from "./dom.js";
import {count, t, when} from "./words.js";

export class MessageView {
  constructor(view, actions) {
    this.actions = actions;
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
    if ("text" in view) this.body.textContent = view.text;
    if ("blocks" in view && view.state !== "streaming") this.settle(view.blocks);
    this.element.setAttribute("aria-busy", String(view.state === "streaming"));
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
  }

  drawTools() {
    const {view, actions} = this;
    const tools = [];
    if (view.versions.length > 1) {
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
      tools.push(iconButton("copy", t("copy"), () => actions.copy(view.id)));
      tools.push(iconButton("edit", t("edit"), () => actions.edit(this)));
      tools.push(iconButton("again", reply ? t("regenerate") : t("answer"), () => actions.regenerate(view.id)));
      if (reply) tools.push(iconButton("onward", t("continue"), () => actions.continueReply(view.id)));
      tools.push(iconButton("branch", t("branch"), () => actions.branch(view.id)));
      tools.push(iconButton("trash", t("delete"), () => actions.remove(view.id)));
    }
    const focused = this.tools.contains(document.activeElement) ? document.activeElement.ariaLabel : null;
    this.tools.replaceChildren(...tools);
    if (focused) [...this.tools.querySelectorAll("button")].find((button) => button.ariaLabel === focused)?.focus();
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
      if (view.model) words.push(view.model + (figures.adapter ? ` + ${figures.adapter}` : ""));
      if (figures.preset) words.push(figures.preset);
      if (figures.edited) words.push(t("figures.edited"));
    }
    this.figures.replaceChildren(...words.map((text) => h("span", {}, text)));
    this.figures.title = [when(view.created), figures.seed !== undefined ? t("figures.seed", {n: figures.seed}) : ""]
      .filter(Boolean).join(" · ");
    this.drawNote(figures);
    if (view.state !== "streaming") this.status.replaceChildren();
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
    }
    this.note.replaceChildren(...parts);
  }

  // --- while the reply is written

  live(change) {
    if ("phase" in change) this.drawStatus(change);
    else this.blocks.apply(change);
  }

  drawStatus(status) {
    const spinner = h("span", {class: "tl-pulse", "aria-hidden": "true"});
    let words = "";
    if (status.phase === "waiting") words = status.place ? t("status.place", {n: status.place}) : t("status.waiting");
    else if (status.phase === "reading") {
      words = status.prompt ? t("status.reading.part", {done: count(status.read), all: count(status.prompt)}) : t("status.reading");
    } else words = status.s ? t("status.writing", {n: count(status.n), speed: status.s.toFixed(1)}) : "";
    this.status.replaceChildren(spinner, h("span", {}, words));
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
      if (event.key === "Enter" && !event.shiftKey && mine && !event.isComposing) { event.preventDefault(); save(true); }
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
