// Chats in and out as files: chosen, dropped, or from a chat's menu.

import {address, attempt, send} from "./api.js";
import {h, iconButton, showMenu, toast} from "./dom.js";
import {chooseFiles} from "./sheet.js";
import {t} from "./words.js";

const FORMS = ["textloom", "markdown", "openai", "sharegpt", "pairs"];
const KINDS = ".json,.jsonl,.md,.markdown,.txt,application/json,text/markdown,text/plain";

// One entry of a chat's menu, which opens the list of forms in its place.
export function exportItem(anchor, row) {
  return {label: t("export"), icon: "download", run: () => showMenu(anchor,
    FORMS.map((form) => ({label: t(`export.${form}`), note: t(`export.${form}.note`), run: () => save(row.id, form)})),
    {title: t("export.title"), wide: true})};
}

function save(id, form) {
  const link = h("a", {href: address(`/${id}/export/${form}`), download: ""});
  document.body.append(link);
  link.click();
  link.remove();
}

export function importButton(controller) {
  return iconButton("upload", t("import"), () => chooseFiles(KINDS, (files) => importFiles(controller, files), {several: true}));
}

export async function importFiles(controller, files) {
  const made = [];
  for (const file of files) {
    const answer = await attempt(() => send("/import", file));
    if (answer) made.push(...answer.chats);
  }
  if (!made.length) return;
  controller.sidebar.refresh();
  await controller.open(made.at(-1));
  toast(made.length === 1 ? t("imported") : t("imported.many", {n: made.length}));
}

const carried = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");

// Files dropped on an element; accepts(file) says which are meant for it. Of the others, `otherwise` says what was expected.
export function takeDrops(element, accepts, run, otherwise = "drop.nowhere") {
  let depth = 0;
  const show = (over) => element.classList.toggle("tl-drop", over);
  element.addEventListener("dragenter", (event) => { if (carried(event)) { depth += 1; show(true); } });
  element.addEventListener("dragleave", (event) => { if (carried(event)) { depth -= 1; show(depth > 0); } });
  element.addEventListener("dragover", (event) => { if (carried(event)) event.preventDefault(); });
  element.addEventListener("drop", (event) => {
    depth = 0;
    show(false);
    const dropped = [...(event.dataTransfer?.files ?? [])];
    if (!dropped.length) return;
    event.preventDefault(); // or the browser would leave the page for the file
    event.stopPropagation();
    const files = dropped.filter(accepts);
    const others = dropped.filter((file) => !files.includes(file));
    if (others.length) toast(t(otherwise, {name: others[0].name}), {wrong: true});
    if (files.length) run(files);
  });
}

// A file that is dropped where nothing takes it: the browser would leave the page for it.
export function refuseOtherDrops() {
  for (const kind of ["dragover", "drop"]) {
    window.addEventListener(kind, (event) => {
      if (event.defaultPrevented || !carried(event)) return;
      event.preventDefault();
      if (kind === "drop") toast(t("drop.nowhere", {name: event.dataTransfer.files[0]?.name ?? ""}), {wrong: true});
    });
  }
}

export const isChatFile = (file) => /\.(jsonl?|md|markdown|txt)$/i.test(file.name) || file.type === "application/json";
