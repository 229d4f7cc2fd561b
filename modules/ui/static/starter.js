// Where there is no model yet: one button that gets the starter model, how far it is, and then the chat.

import {attempt, post, remove} from "./api.js";
import {h} from "./dom.js";
import {bytes, t} from "./words.js";

const UNDER_WAY = ["asking", "running"];

export class Starter {
  // chat: the chat view of main.js
  constructor(chat) {
    this.words = h("p", {role: "status"});
    this.wrong = h("p", {class: "tl-wrong-text", role: "alert"});
    this.bar = h("progress", {max: 1, "aria-label": t("models.starter")});
    this.get = h("button", {type: "button", class: "tl-strong", onclick: () => this.begin(chat)}, t("models.starter"));
    this.cancel = h("button", {type: "button", class: "tl-quiet", onclick: () => attempt(() => remove(`/downloads/${this.job.id}`))}, t("cancel"));
    this.other = h("p", {class: "tl-other"}, h("button", {type: "button", class: "tl-link", onclick: () => chat.openTab("models")}, t("welcome.hub")));
    this.element = h("div", {class: "tl-starter"}, this.words, this.wrong, this.bar, this.get, this.cancel, this.other);
  }

  // job: the download of the starter model, where one was begun; admin: who looks may begin one.
  draw(job, admin) {
    this.job = job;
    const running = UNDER_WAY.includes(job?.state);
    this.words.textContent = running ? this.far(job) : t(admin ? "welcome.get" : "welcome.none");
    this.wrong.hidden = job?.state !== "failed";
    this.wrong.textContent = job?.error ?? "";
    this.bar.hidden = !running;
    if (job?.total) this.bar.value = job.done / job.total;
    else this.bar.removeAttribute("value");
    this.get.hidden = running || !admin;
    this.cancel.hidden = !running || !admin;
    this.other.hidden = running || !admin;
  }

  far(job) {
    if (!job.done || !job.speed) return t("welcome.getting");
    const left = Math.max(1, Math.round(job.left ?? 0));
    return t("welcome.getting.far", {done: bytes(job.done), all: bytes(job.total), seconds: left});
  }

  async begin(chat) {
    this.get.disabled = true; // at once, before the server knows of it
    await attempt(() => post("/starter"));
    await chat.pulse();
    this.get.disabled = false;
  }
}
