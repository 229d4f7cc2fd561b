// What is asked for while a model loads: it is kept, and begins when the model is there.

import {attempt, get, post} from "./api.js";
import {pictureAt} from "./attach.js";
import {h, keyed, toast} from "./dom.js";
import {follow, soon} from "./events.js";
import {t} from "./words.js";

const KEY = "textloom-waiting";

// Whether a model is on its way: it loads, or the first one is being downloaded and will be loaded then.
export const comesSoon = ({engine, starter}) => engine.state === "loading"
  || (engine.state === "empty" && ["asking", "running"].includes(starter?.state));

export const waitsFor = ({engine}) => engine.name ?? t("model");

// Until no model is being loaded.
export async function modelReady() {
  const {engine} = await get("/pulse");
  if (engine.state !== "loading") return;
  toast(t("waiting.begins", {name: engine.name}), {seconds: 6});
  await /** @type {Promise<void>} */ (new Promise((done) => {
    const status = follow({kind: "status"}, (now) => {
      if (now.engine.state === "loading") return;
      status.close();
      done();
    }, {hidden: () => true});
  }));
}

// A message that was sent while a model loads: it stands below its conversation, also after a reload, and can be taken back.
export class Waiting {
  // chat: the chat view of main.js
  constructor(chat) {
    this.chat = chat;
    this.message = JSON.parse(sessionStorage.getItem(KEY));
    this.element = h("div", {class: "tl-column tl-waiting", role: "status", hidden: true});
  }

  // message: {chat, after, content, pictures, files, settings} as /send takes it. What waits already comes before it.
  keep(message) {
    const before = this.message;
    if (this.going || (before && before.chat !== message.chat)) return false;
    if (before) {
      const joined = (name) => [...before[name], ...message[name]];
      const content = [before.content, message.content].filter(Boolean).join("\n\n");
      message = {...before, content, pictures: joined("pictures"), files: joined("files")};
    }
    this.remember(message);
    return true;
  }

  remember(message) {
    this.message = message;
    soon(); // with a message that waits, the status is followed while nobody sees the page
    sessionStorage.removeItem(KEY);
    try {
      if (message) sessionStorage.setItem(KEY, JSON.stringify(message));
    } catch {
      // its files are too large to outlive a reload
    }
    this.draw();
  }

  draw() {
    const {message, chat} = this;
    this.element.hidden = !message || message.chat !== chat.current;
    if (this.element.hidden || !chat.seen.engine) return;
    const words = t("waiting.sent", {name: waitsFor(chat.seen)});
    keyed(this.element, [message, words, this.going], () => this.element.replaceChildren(h("article", {class: "tl-message", "data-role": "user"},
      message.pictures.length ? h("div", {class: "tl-pictures"}, message.pictures.map((id) => h("img", {src: pictureAt(id, true), alt: ""}))) : null,
      h("div", {class: "tl-body"}, [message.content, ...message.files.map(({name}) => name)].filter(Boolean).join("\n")),
      h("div", {class: "tl-status"}, h("span", {class: "tl-pulse", "aria-hidden": "true"}), h("span", {}, words),
        this.going ? null : h("button", {type: "button", class: "tl-link", onclick: () => this.takeBack()}, t("waiting.take.back"))))));
  }

  // Where nothing loads any more, it goes out; where there is no model after all, it is a draft again.
  async look(pulse) {
    this.draw();
    if (!this.message || this.going || comesSoon(pulse)) return;
    if (pulse.engine.state === "empty") return this.takeBack();
    const {chat, message} = this;
    this.going = true; // it cannot be taken back any more, and nothing is added to it
    this.draw();
    const answer = await attempt(() => post("/send", message));
    this.going = false;
    if (!answer) return this.takeBack();
    const here = message.chat === chat.current;
    this.remember(null);
    if (here) await chat.began(answer.chat);
    else chat.sidebar.refresh();
  }

  takeBack() {
    const {message, chat} = this;
    this.remember(null);
    chat.composer.putBack(message.chat, message);
  }
}
