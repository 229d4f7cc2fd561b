// What was deleted or overwritten: the message with its Undo, and the list of all that can be put back.

import {attempt, get, post, put, remove} from "./api.js";
import {h, iconButton, showDialog, toast} from "./dom.js";
import {bytes, t, when} from "./words.js";

const changed = () => window.dispatchEvent(new Event("tl-changed"));

async function putBack(note) {
  const work = note.settings ? () => put("/sampling", note.settings) : () => post(`/deleted/${note.undo}/restore`);
  const back = await attempt(work);
  if (back === undefined) return false;
  window.dispatchEvent(new CustomEvent("tl-restored", {detail: back?.kind}));
  changed();
  return true;
}

// notes: what the server told of one change (undo.told), in the order in which it was made. after: run when it is taken back.
export function say(notes, after = () => {}) {
  const all = [notes].flat().filter((note) => note?.words);
  if (!all.length) return;
  changed();
  const undone = all.filter((note) => note.undo || note.settings).reverse();
  const action = undone.length ? {label: t("undo"), run: async () => {
    let whole = true;
    for (const note of undone) whole = (await putBack(note)) && whole;
    if (whole) toast(t("restored"), {seconds: 3});
    after();
  }} : null;
  toast(t(all[0].words, all[0].values), {action, seconds: action ? 10 : 4});
}

// The part of the Session tab that lists it all.
export function deletedList(host) {
  const list = h("ul", {class: "tl-deleted"});
  const section = h("section", {}, h("h2", {}, t("deleted")), h("p", {}, t("deleted.help")), list);
  const row = (kept) => h("li", {"data-id": kept.id},
    h("span", {}, h("strong", {}, kept.name), h("small", {}, [t(`deleted.${kept.kind}`), t(kept.overwritten ? "deleted.overwritten" : "deleted.deleted"),
      when(kept.at), bytes(kept.size), kept.shipped ? t("deleted.shipped") : ""].filter(Boolean).join(" · "))),
    h("button", {type: "button", class: "tl-quiet", onclick: async () => {
      if (await putBack({undo: kept.id})) toast(t("restored"), {seconds: 3});
    }}, t("restore")),
    iconButton("trash", t("deleted.forget", {name: kept.name}), () => showDialog(host, t("deleted.forget.title", {name: kept.name}), [], t("deleted.for.good"),
      async () => {
        await attempt(() => remove(`/deleted/${kept.id}`));
        changed();
      }, h("p", {}, t("deleted.forget.help")), {cancel: true})));
  const draw = (all) => {
    list.replaceChildren(...all.map(row));
    if (!all.length) list.append(h("li", {class: "tl-nothing"}, t("deleted.none")));
  };
  window.addEventListener("tl-changed", async () => {
    const all = host.offsetParent && await get("/deleted").catch(() => null);
    if (all) draw(all);
  });
  return {section, draw};
}

window.TEXTLOOM.say = say;
