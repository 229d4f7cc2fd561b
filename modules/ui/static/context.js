// How full the model's window is: what is there, what the draft adds, what is left for the reply.

import {post} from "./api.js";
import {h} from "./dom.js";
import {count, t} from "./words.js";

const PAUSE = 450; // milliseconds after the last key

export class ContextBar {
  // chat: the chat view of main.js
  constructor(chat) {
    this.chat = chat;
    this.fill = h("span", {class: "tl-context-fill"});
    this.reply = h("span", {class: "tl-context-reply"});
    this.words = h("span", {class: "tl-context-words"});
    this.meter = h("div", {class: "tl-context-meter"}, this.fill, this.reply);
    this.element = h("button", {type: "button", class: "tl-context", hidden: true, onclick: () => chat.showDraftPrompt()}, this.meter, this.words);
    this.timer = 0;
    this.turn = 0;
  }

  // Something changed: count again, when it is quiet.
  soon(pause = PAUSE) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.count(), pause);
  }

  async count() {
    const {chat} = this;
    if (chat.seen.engine?.state !== "ready" || document.hidden) {
      this.element.hidden = chat.seen.engine?.state !== "ready";
      return;
    }
    if (chat.busyReplies) return;
    const turn = ++this.turn;
    let view;
    try {
      view = await post("/context", chat.draft());
    } catch {
      this.element.hidden = true; // what is wrong is said when it is sent
      return;
    }
    if (turn === this.turn) this.draw(view);
  }

  // prompt and made: tokens of a reply that is being written
  live(prompt, made) {
    if (this.view) this.draw({...this.view, tokens: prompt + made, reply: 0, dropped: 0, over: false});
  }

  draw(view) {
    this.view = view;
    const {tokens, reply, context, dropped, over} = view;
    const share = (part) => `${Math.min(100, (100 * part) / context)}%`;
    this.element.hidden = !tokens;
    this.fill.style.width = share(tokens);
    this.reply.style.width = share(Math.min(reply, context - tokens));
    this.element.dataset.state = dropped || over ? "over" : tokens > 0.85 * context ? "tight" : "roomy";
    const words = t("context.words", {n: count(tokens), all: count(context)});
    this.words.textContent = dropped ? `${words} · ${t("context.dropped", {n: dropped})}` : words;
    this.chat.composer.attached.fits(view);
    this.element.setAttribute("aria-label", `${t("context")}: ${this.words.textContent}`);
    this.element.title = reply ? t("context.title", {n: count(tokens), reply: count(reply), all: count(context)}) : words;
  }
}
