// What the model sees: the exact prompt, what the template put into it, and what did not fit.

import {attempt} from "./api.js";
import {copyText, h} from "./dom.js";
import {openSheet} from "./sheet.js";
import {count, t} from "./words.js";

// load: asks the server for it
export async function showPrompt(host, load) {
  const view = await attempt(load);
  if (!view) return;
  const summary = h("p", {class: "tl-prompt-facts"}, t("prompt.facts", {n: count(view.tokens), all: count(view.context), reply: count(view.reply)}));
  const parts = [summary];
  if (view.problem) parts.push(h("p", {class: "tl-warning"}, t("template.problem.this"), " ", view.problem));
  else if (view.moved) parts.push(h("p", {class: "tl-quiet-text"}, t("template.moved")));
  if (view.lore.length) parts.push(h("details", {class: "tl-card-fields"}, h("summary", {}, t("prompt.lore", {n: view.lore.length})),
    h("ul", {class: "tl-lore"}, view.lore.map((one) => h("li", {}, h("strong", {}, one.title),
      h("span", {class: "tl-quiet-text"}, one.key ? t("prompt.lore.key", {key: one.key}) : t("lore.always")),
      h("span", {class: "tl-lore-text"}, one.text))))));
  const text = h("pre", {class: "tl-prompt", tabindex: "0", "aria-label": t("prompt")});
  const pieces = view.pieces.map(([kind, words]) => h("span", {class: `tl-piece-${kind}`, title: t(kind === "template" ? "prompt.template" : `role.${kind}`)}, words));
  const cut = view.left_out.length ? h("span", {class: "tl-piece-cut"},
    h("strong", {}, t("prompt.cut", {n: view.left_out.length})), ...view.left_out.map(([role, words]) => h("span", {class: "tl-cut-turn"}, `${t(`role.${role}`)}: ${words}`))) : null;
  const head = view.pieces.findIndex(([kind]) => kind !== "template" && kind !== "system");
  const place = Math.max(0, head - 1);
  if (cut) pieces.splice(place, 0, cut);
  text.append(...pieces);
  parts.push(h("div", {class: "tl-prompt-legend", "aria-hidden": "true"}, h("span", {class: "tl-piece-template"}, t("prompt.template")),
    h("span", {}, t("prompt.said")), view.left_out.length ? h("span", {class: "tl-piece-cut"}, t("prompt.left.out")) : null), text);
  parts.push(h("details", {class: "tl-ids"}, h("summary", {}, t("prompt.ids", {n: count(view.ids.length)})), h("code", {}, view.ids.join(" "))));
  parts.push(h("button", {type: "button", class: "tl-quiet", onclick: () => copyText(view.pieces.map(([, words]) => words).join(""))}, t("copy")));
  openSheet(host, t("prompt"), {wide: true}).body.append(...parts);
}
