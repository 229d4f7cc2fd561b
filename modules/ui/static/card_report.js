// What came in with the files of characters, and what of them was left out or has no effect here.

import {h, toast} from "./dom.js";
import {openSheet} from "./sheet.js";
import {t} from "./words.js";

// came: what the server says of each file
export function reportUploads(host, came) {
  const told = came.filter((one) => one.lore || one.left_out.length);
  for (const one of came) if (!told.includes(one)) toast(t("character.added", {name: one.name}));
  if (!told.length) return;
  openSheet(host, t("character.report")).body.append(...told.map((one) => h("section", {class: "tl-card-report"},
    h("h3", {}, one.name),
    h("p", {}, parts(one).join(t("list.and"))),
    one.left_out.length ? h("p", {}, t("character.left")) : null,
    h("ul", {}, one.left_out.map((left) => h("li", {}, t(`character.left.${left.kind}`, {what: left.what, n: left.count})))))));
}

function parts(one) {
  const found = [t("character.came")];
  if (one.pictured) found.push(t("character.came.picture"));
  if (one.greetings) found.push(t("character.came.greetings", {n: one.greetings}));
  if (one.lore) found.push(t(one.constant ? "character.came.lore.always" : "character.came.lore", {n: one.lore, always: one.constant}));
  return found;
}
