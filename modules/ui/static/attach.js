// Pictures for a message: chosen, pasted or dropped; small ones beside the text until it is sent, and in the message after.

import {address, attempt, send} from "./api.js";
import {h, iconButton, toast} from "./dom.js";
import {chooseFiles, openSheet} from "./sheet.js";
import {takeDrops} from "./transfer.js";
import {t} from "./words.js";

const KINDS = "image/png,image/jpeg,image/webp,image/gif";
const MOST = 16;
const isPicture = (file) => file.type.startsWith("image/");
const pictureAt = (id, small = false) => address(`/pictures/${id}${small ? "?small=true" : ""}`);

export class Attachments {
  // composer: {key, drawButton(), text}
  constructor(composer) {
    this.composer = composer;
    this.ids = [];
    this.why = t("pictures.none");
    this.button = iconButton("picture", t("pictures.add"), () => {
      if (this.why) toast(this.why);
      else chooseFiles(KINDS, (files) => this.add(files), {several: true});
    }, {class: "tl-attach"});
    this.tray = h("div", {class: "tl-tray", role: "list", "aria-label": t("pictures"), hidden: true});
    composer.text.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])].filter(isPicture);
      if (!files.length) return;
      event.preventDefault();
      this.add(files);
    });
    this.allow({});
  }

  // Files that are dropped anywhere on `element`.
  watch(element) {
    takeDrops(element, isPicture, (files) => this.add(files));
  }

  // Whether the model that is loaded sees; if not, the button says why.
  allow({engine}) {
    this.why = engine?.state === "asleep" ? "" : engine?.state !== "ready" ? t("pictures.none") : engine.images ? "" : t("pictures.blind", {name: engine.name});
    this.button.setAttribute("aria-disabled", String(Boolean(this.why)));
    this.button.title = this.why || t("pictures.add");
  }

  async add(files) {
    if (this.why) return toast(this.why, {wrong: true});
    for (const file of files) {
      if (this.ids.length >= MOST) return toast(t("pictures.most", {n: MOST}), {wrong: true});
      const kept = await attempt(() => send("/pictures", file));
      if (kept && !this.ids.includes(kept.id)) this.ids.push(kept.id);
    }
    this.changed();
  }

  take() {
    const ids = this.ids;
    this.ids = [];
    this.draw();
    return ids;
  }

  putBack(ids) {
    this.ids = [...ids];
    this.changed();
  }

  // The draft of another chat.
  turnTo(key) {
    this.ids = JSON.parse(sessionStorage.getItem(`${key}-pictures`) ?? "[]");
    this.draw();
  }

  forget(key) {
    sessionStorage.removeItem(`${key}-pictures`);
  }

  changed() {
    sessionStorage.setItem(`${this.composer.key}-pictures`, JSON.stringify(this.ids));
    this.draw();
    this.composer.drawButton();
  }

  draw() {
    this.tray.hidden = !this.ids.length;
    this.tray.replaceChildren(...this.ids.map((id, at) => h("span", {class: "tl-attached", role: "listitem"},
      h("img", {src: pictureAt(id, true), alt: t("pictures.one", {n: at + 1})}),
      iconButton("close", t("pictures.remove", {n: at + 1}), () => this.putBack(this.ids.filter((other) => other !== id))))));
  }
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
