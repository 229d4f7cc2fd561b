// What goes with a message: pictures and text files, chosen, pasted or dropped; shown beside the text until it is sent, and in the message after.

import {address, attempt, send} from "./api.js";
import {h, iconButton, toast} from "./dom.js";
import {chooseFiles, openSheet} from "./sheet.js";
import {chip, MOST_CHARACTERS, MOST_FILES, readText} from "./text_files.js";
import {takeDrops} from "./transfer.js";
import {count, t} from "./words.js";

const PICTURES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MOST = 16;
const isPicture = (file) => PICTURES.includes(file.type);
export const pictureAt = (id, small = false) => address(`/pictures/${id}${small ? "?small=true" : ""}`);

export class Attachments {
  // composer: {key, drawButton(), text, controller: {drafted()}}
  constructor(composer) {
    this.composer = composer;
    this.ids = [];
    this.files = []; // {name, text}
    this.kept = new Map(); // the files of other drafts, by their key
    this.why = t("pictures.none");
    this.button = iconButton("clip", t("attach"), () => chooseFiles("", (files) => this.add(files), {several: true}), {class: "tl-attach"});
    this.over = h("p", {class: "tl-tray-words tl-wrong-text", role: "status", hidden: true});
    this.list = h("div", {class: "tl-tray-list", role: "list", "aria-label": t("attached")});
    this.tray = h("div", {class: "tl-tray", hidden: true}, this.list, this.over);
    composer.text.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      const text = event.clipboardData?.getData("text/plain"); // cells of a table come with a picture of themselves
      if (!files.length || (text && files.every(isPicture))) return;
      event.preventDefault();
      this.add(files);
    });
    this.allow({engine: null});
  }

  // What is dropped anywhere on `element`: files, and text that is no file goes into the box.
  watch(element) {
    takeDrops(element, () => true, (files) => this.add(files));
    element.addEventListener("dragover", (event) => { if (isText(event)) event.preventDefault(); });
    element.addEventListener("drop", (event) => {
      if (!isText(event)) return;
      event.preventDefault();
      const {text} = this.composer;
      this.composer.fill([text.value, event.dataTransfer.getData("text/plain")].filter(Boolean).join("\n"));
    });
  }

  // Whether the model that is loaded sees; if not, the button says that pictures wait for one that does.
  allow({engine}) {
    this.why = engine?.state === "asleep" ? "" : engine?.state !== "ready" ? t("pictures.none") : engine.images ? "" : t("pictures.blind", {name: engine.name});
    this.button.title = this.why ? `${t("attach")} (${this.why})` : t("attach");
  }

  async add(files) {
    for (const file of files) {
      if (isPicture(file)) await this.addPicture(file);
      else this.addText(await readText(file, (read) => this.addText(read)));
    }
    this.changed();
  }

  async addPicture(file) {
    if (this.why) return toast(this.why, {wrong: true});
    if (this.ids.length >= MOST) return toast(t("pictures.most", {n: MOST}), {wrong: true});
    const kept = await attempt(() => send("/pictures", file));
    if (kept && !this.ids.includes(kept.id)) this.ids.push(kept.id);
  }

  addText(file) {
    if (!file) return;
    const characters = [...this.files, file].reduce((sum, {text}) => sum + text.length, 0);
    if (this.files.length >= MOST_FILES) return toast(t("files.most", {n: MOST_FILES}), {wrong: true});
    if (characters > MOST_CHARACTERS) return toast(t("files.long", {name: file.name, most: count(MOST_CHARACTERS)}), {wrong: true});
    this.files.push(file);
    this.changed();
  }

  get empty() {
    return !this.ids.length && !this.files.length;
  }

  // {pictures, files}, as the server takes them.
  take() {
    const taken = {pictures: this.ids, files: this.files};
    this.ids = [];
    this.files = [];
    this.draw();
    return taken;
  }

  putBack({pictures = this.ids, files = this.files}) {
    this.ids = [...pictures];
    this.files = [...files];
    this.changed();
  }

  // The draft of another chat.
  turnTo(key) {
    ({pictures: this.ids, files: this.files} = this.of(key));
    this.draw();
  }

  of(key) {
    return {
      pictures: JSON.parse(sessionStorage.getItem(`${key}-pictures`) ?? "[]"),
      files: this.kept.get(key) ?? JSON.parse(sessionStorage.getItem(`${key}-files`) ?? "[]"),
    };
  }

  forget(key) {
    sessionStorage.removeItem(`${key}-pictures`);
    sessionStorage.removeItem(`${key}-files`);
    this.kept.delete(key);
  }

  // What belongs to a draft, of this chat or another.
  keep(key, {pictures, files}) {
    sessionStorage.setItem(`${key}-pictures`, JSON.stringify(pictures));
    this.kept.set(key, files);
    try {
      sessionStorage.setItem(`${key}-files`, JSON.stringify(files));
    } catch {
      sessionStorage.removeItem(`${key}-files`); // too large for a reload, but not for another chat and back
    }
  }

  save() {
    this.keep(this.composer.key, {pictures: this.ids, files: this.files});
  }

  changed() {
    this.save();
    this.draw();
    this.composer.drawButton();
    this.composer.controller.drafted();
  }

  // What the context meter counted: whether this message would not fit even alone.
  fits({over, tokens, context}) {
    this.over.hidden = !over;
    this.over.textContent = over ? t("context.over", {n: count(tokens), all: count(context)}) : "";
    this.show();
  }

  show() {
    this.list.hidden = this.empty;
    this.tray.hidden = this.empty && this.over.hidden;
  }

  draw() {
    this.show();
    this.list.replaceChildren(
      ...this.ids.map((id, at) => h("span", {class: "tl-attached", role: "listitem"},
        h("img", {src: pictureAt(id, true), alt: t("pictures.one", {n: at + 1})}),
        iconButton("close", t("pictures.remove", {n: at + 1}), () => this.putBack({pictures: this.ids.filter((other) => other !== id)})))),
      ...this.files.map((file) => h("span", {class: "tl-attached", role: "listitem"},
        chip(() => this.tray.closest(".tl"), file.name, file.text.length, () => file.text),
        iconButton("close", t("files.remove", {name: file.name}), () => this.putBack({files: this.files.filter((other) => other !== file)})))));
  }
}

// A selection or a link that is dragged, not onto a box that takes it by itself.
function isText(event) {
  const {types} = event.dataTransfer ?? {types: []};
  return types.includes("text/plain") && !types.includes("Files") && !event.target.closest?.("textarea, input");
}

// The pictures of a message, small; a click shows one as it is.
export function drawPictures(view) {
  const ids = (view.view.extra?.pictures ?? []).filter(Number.isInteger);
  const key = ids.join();
  if ((view.picturesKey ?? "") === key) return;
  view.picturesKey = key;
  view.pictures?.remove();
  view.pictures = null;
  if (!ids.length) return;
  view.pictures = h("div", {class: "tl-pictures"}, ids.map((id, at) => {
    const label = t("pictures.one", {n: at + 1});
    return h("button", {type: "button", "aria-label": label, onclick: () => {
      const sheet = openSheet(view.element.closest(".tl"), label, {wide: true});
      sheet.body.append(h("img", {class: "tl-picture-whole", src: pictureAt(id), alt: label}));
    }}, h("img", {src: pictureAt(id, true), alt: "", loading: "lazy"}));
  }));
  view.body.before(view.pictures);
}
