// A dialog with anything in it: it closes by its button, Escape, or a click beside it.

import {h, iconButton, showModal} from "./dom.js";
import {t} from "./words.js";

export function openSheet(host, title, {wide = false, tools = []} = {}) {
  const body = h("div", {class: "tl-sheet-body"});
  const dialog = h("dialog", {class: `tl-dialog tl-sheet${wide ? " tl-wide" : ""}`, "aria-label": title},
    h("div", {class: "tl-sheet-head"}, h("h2", {}, title), h("span", {class: "tl-space"}), tools,
      iconButton("close", t("close"), () => dialog.close())),
    body);
  showModal(host, dialog);
  return {dialog, body, close: () => dialog.close()};
}

// Ask for files of some kinds; run(files) gets what was chosen.
export function chooseFiles(accept, run, {several = false} = {}) {
  const input = h("input", {type: "file", accept, multiple: several, class: "tl-hidden", tabindex: "-1"});
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.remove();
    if (files.length) run(files);
  });
  input.addEventListener("cancel", () => input.remove());
  document.body.append(input);
  input.click();
}
