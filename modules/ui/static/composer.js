// Where a message is written. It stays in its place, and a draft stays in it.

import {Attachments} from "./attach.js";
import {h, icon} from "./dom.js";
import {t} from "./words.js";

const keyOf = (chat) => `textloom-draft-${chat ?? "new"}`;
const together = (...texts) => texts.filter(Boolean).join("\n\n");
const joined = (one, other) => ({pictures: [...new Set([...one.pictures, ...other.pictures])], files: [...one.files, ...other.files]});

export class Composer {
  // controller: {send(text, {pictures, files}) → true when it was taken, stop(), editLast(), drafted()}; parts: {menu, chip, context} around it
  constructor(controller, {menu, chip, context}) {
    this.controller = controller;
    this.chat = null; // whose draft this is; null: of one that is not there yet
    this.text = h("textarea", {rows: "1", placeholder: t("composer.placeholder"), "aria-label": t("composer.label"), enterkeyhint: "send"});
    this.button = h("button", {type: "submit", class: "tl-send"});
    this.hint = h("div", {class: "tl-hint"});
    this.attached = new Attachments(this);
    this.element = h("form", {class: "tl-composer"}, chip ?? "", this.attached.tray,
      h("div", {class: "tl-composer-box"}, menu ?? "", this.attached.button, this.text, this.button),
      h("div", {class: "tl-under"}, context ?? "", this.hint));
    this.text.addEventListener("input", () => {
      this.grow();
      this.drawButton();
      sessionStorage.setItem(this.key, this.text.value);
      this.controller.drafted();
    });
    this.text.addEventListener("keydown", (event) => this.pressed(event));
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.lent) this.lent();
      else if (this.writing) this.controller.stop();
      else this.send();
    });
    this.busy(false);
  }

  pressed(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.altKey) {
      event.preventDefault();
      if (!this.writing) this.send();
    } else if (event.key === "ArrowUp" && !this.text.value) {
      event.preventDefault();
      this.controller.editLast();
    }
  }

  async send() {
    const text = this.text.value;
    if (this.blank || this.sending || this.lent) return;
    this.sending = true;
    const attached = this.attached.take();
    this.drawButton();
    this.text.value = "";
    this.grow();
    const {chat} = this;
    const taken = await this.controller.send(text, attached);
    this.sending = false;
    if (chat !== this.chat) {
      if (taken) this.forget(chat);
    } else if (taken) this.save();
    else {
      this.attached.putBack(joined(attached, {pictures: this.attached.ids, files: this.attached.files}));
      this.fill(together(text, this.text.value));
    }
    this.drawButton();
  }

  // A message that was kept to be sent is a draft of its chat again, before what was written there since.
  putBack(chat, {content, ...attached}) {
    const key = keyOf(chat);
    sessionStorage.setItem(key, together(content, sessionStorage.getItem(key)));
    this.attached.keep(key, joined(attached, this.attached.of(key)));
    if (chat === this.chat) this.turnTo(chat);
  }

  // The draft as it stands, for a reload, or another chat and back.
  save() {
    sessionStorage.setItem(this.key, this.text.value);
    this.attached.save();
  }

  forget(chat) {
    sessionStorage.removeItem(keyOf(chat));
    this.attached.forget(keyOf(chat));
  }

  get key() {
    return keyOf(this.chat);
  }

  get blank() {
    return !this.text.value.trim() && this.attached.empty;
  }

  // A new chat has begun with what was sent: it is the one of this draft now.
  follow(id) {
    this.forget(this.chat);
    this.chat = id;
    this.save();
  }

  // The draft of another chat.
  turnTo(id) {
    this.chat = id;
    this.attached.turnTo(this.key);
    this.text.value = sessionStorage.getItem(this.key) ?? "";
    this.grow();
    this.drawButton();
  }

  fill(text) {
    this.text.value = text;
    this.text.dispatchEvent(new Event("input"));
    this.text.focus();
  }

  empty() {
    this.attached.putBack({files: []});
    this.fill("");
  }

  // --- the model writes here; stop() ends it

  borrow(stop) {
    this.lent = stop;
    this.text.readOnly = true;
    this.text.setAttribute("aria-busy", "true");
    this.drawButton();
  }

  append(text) {
    this.text.placeholder = t("composer.placeholder");
    this.text.value += text;
    this.grow();
    this.text.scrollTop = this.text.scrollHeight;
  }

  say(words) {
    this.text.placeholder = words;
  }

  giveBack() {
    this.lent = null;
    this.text.readOnly = false;
    this.text.removeAttribute("aria-busy");
    this.text.placeholder = t("composer.placeholder");
    this.fill(this.text.value.trimEnd());
    this.drawButton();
  }

  busy(writing) {
    this.writing = writing;
    this.drawButton();
  }

  drawButton() {
    const stops = Boolean(this.writing || this.lent);
    const label = stops ? t("stop") : t("send");
    this.button.replaceChildren(icon(stops ? "stop" : "send"));
    this.button.ariaLabel = label;
    this.button.title = stops ? `${label} (Esc)` : `${label} (Enter)`;
    this.button.classList.toggle("tl-stop", stops);
    this.button.disabled = !stops && (this.sending || this.blank);
  }

  grow() {
    this.text.style.height = "auto";
    this.text.style.height = `${this.text.scrollHeight}px`;
  }

  focus() {
    if (matchMedia("(pointer: fine)").matches) this.text.focus({preventScroll: true});
  }
}
