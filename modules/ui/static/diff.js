// Two versions of a message, with what went out and what came in.

import {attempt, get} from "./api.js";
import {h} from "./dom.js";
import {openSheet} from "./sheet.js";
import {t} from "./words.js";

// view: the message as the server tells it; other: the version to begin with (the one before, where none is given)
export function showDifference(host, view, other = null) {
  const at = view.versions.indexOf(view.id);
  const from = other ?? view.versions[at > 0 ? at - 1 : 1];
  const choice = (words, value) => {
    const select = h("select", {}, view.versions.map((id, index) => h("option", {value: String(id)}, t("version.number", {n: index + 1}))));
    select.value = String(value);
    select.addEventListener("change", () => draw());
    return {select, label: h("label", {class: "tl-field"}, h("span", {}, words), select)};
  };
  const old = choice(t("diff.old"), from);
  const now = choice(t("diff.new"), view.id);
  const text = h("div", {class: "tl-diff", tabindex: "0", role: "region", "aria-label": t("diff")});
  async function draw() {
    const steps = await attempt(() => get(`/messages/${old.select.value}/difference/${now.select.value}`));
    if (!steps) return;
    const tags = {same: "span", out: "del", in: "ins"};
    text.replaceChildren(...steps.map(([kind, words]) => h(tags[kind], {}, words)));
    if (steps.every(([kind]) => kind === "same")) text.prepend(h("p", {class: "tl-diff-same"}, t("diff.same")));
  }
  openSheet(host, t("diff"), {wide: true}).body.append(h("div", {class: "tl-diff-choice"}, old.label, now.label), text);
  draw();
}
