// A run's adapter beside its base model: one question, two replies as they are made.

import {attempt, post, streamed} from "./api.js";
import {onSubmit} from "./busy.js";
import {h} from "./dom.js";
import {t} from "./words.js";

export class Comparison {
  constructor() {
    this.source = h("select", {"aria-label": t("training.adapter")});
    this.question = h("textarea", {rows: "2", placeholder: t("training.compare.question"), "aria-label": t("training.compare.question")});
    this.button = h("button", {type: "submit", class: "tl-strong"}, t("training.compare.ask"));
    this.replies = ["training.sample.reply", "training.sample.base"].map((key) => h("div", {}, h("small", {}, t(key)), h("p", {})));
    const form = h("form", {class: "tl-compare-form"}, this.question, h("div", {class: "tl-compare-row"}, this.source, this.button));
    onSubmit(form, () => this.ask());
    this.question.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.element = h("details", {class: "tl-compare"}, h("summary", {}, t("training.compare")), form,
      h("div", {class: "tl-compare-replies tl-pair", "aria-live": "polite"}, this.replies));
  }

  // The run that is looked at now; its finished adapter and its checkpoints can be chosen.
  show(run, admin) {
    const names = [...(run.state === "done" && run.method !== "full" ? [""] : []), ...run.checkpoints.toReversed()];
    this.element.hidden = !admin || !names.length;
    if (this.id !== run.id) {
      this.id = run.id;
      this.element.open = false;
      for (const reply of this.replies) reply.lastChild.textContent = "";
    }
    if (this.names === names.join("/")) return;
    this.names = names.join("/");
    this.source.replaceChildren(...names.map((name) => h("option", {value: name}, name || t("training.finished"))));
  }

  async ask() {
    const question = this.question.value;
    await attempt(async () => {
      const adapter = await post(`/training/${encodeURIComponent(this.id)}/adapter`, {checkpoint: this.source.value});
      await Promise.all([adapter, null].map((name, at) => this.write(this.replies[at].lastChild, {question, adapter: name})));
    });
  }

  async write(place, body) {
    place.textContent = "…";
    let text = "";
    for await (const piece of streamed("/training/ask", body)) {
      text += piece;
      place.textContent = text;
    }
  }
}
