// Chats in and out as files: chosen, dropped, or from a chat's menu.

import {Refused, address, attempt, send} from "./api.js";
import {h, iconButton, showMenu, toast} from "./dom.js";
import {chooseFiles, openSheet} from "./sheet.js";
import {count, t} from "./words.js";

const FORMS = ["textloom", "markdown", "openai", "sharegpt", "pairs"];
const KINDS = ".json,.jsonl,.md,.markdown,.txt,.zip,application/json,text/markdown,text/plain,application/zip";

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
  const report = {made: [], left: [], remarks: [], more: 0};
  for (const file of files) {
    const done = toast(t("importing", {file: file.name}), {seconds: 0});
    const answer = await attempt(() => send("/import", file).catch((error) => {
      if (error instanceof Refused) return {why: error.message};
      throw error;
    }));
    done();
    if (!answer) return;
    if (!answer.why) add(report, answer, files.length > 1 ? file.name : "");
    else if (files.length > 1) report.left.push({file: file.name, why: answer.why});
    else return void toast(t("import.refused", {file: file.name, why: answer.why}), {wrong: true});
  }
  if (report.made.length) {
    controller.sidebar.refresh();
    controller.sidebar.makeWay();
    await controller.open(report.made.at(-1));
  }
  tell(controller, report);
}

function add(report, answer, file) {
  const of = (entry) => ({...entry, file: [file, entry.file].filter(Boolean).join(" · ")});
  report.made.push(...answer.chats);
  report.left.push(...answer.left_out.map(of));
  report.remarks.push(...answer.remarks.map(of));
  report.more += answer.more;
}

// How many came in; what did not stays to be read, until it is closed.
function tell(controller, report) {
  const n = report.made.length;
  if (!report.left.length && !report.remarks.length) {
    toast(n === 1 ? t("imported") : t("imported.many", {n: count(n)}));
    return;
  }
  const some = new Set(report.remarks.map((entry) => entry.chat)).size;
  const words = report.left.length
    ? t("imported.partly", {n: count(n), left: count(report.left.length)}) : t("imported.remarks", {n: count(n), some: count(some)});
  const action = {label: t("import.list"), run: () => showReport(controller, report)};
  toast(words, {action, seconds: 0, wrong: !n});
}

function showReport(controller, report) {
  const {dialog, body} = openSheet(controller.host, t("import.report"));
  const line = (entry, name) => h("li", {},
    h("span", {class: "tl-report-head"},
      entry.number ? h("span", {}, t("import.number", {n: count(entry.number)})) : null, name,
      entry.file ? h("span", {}, entry.file) : null),
    [entry.why].flat().map((reason) => h("span", {}, reason)));
  const part = (words, entries, name) => {
    if (entries.length) body.append(h("h3", {}, words), h("ul", {class: "tl-report"}, entries.map((entry) => line(entry, name(entry)))));
  };
  part(t("import.report.left"), report.left, (entry) => (entry.number ? h("b", {}, entry.title || t("import.untitled")) : null));
  part(t("import.report.remarks"), ofChats(report.remarks), (entry) => h("button",
    {type: "button", class: "tl-link", onclick: () => { dialog.close(); controller.open(entry.chat); }}, entry.title || t("import.untitled")));
  if (report.more) body.append(h("p", {}, t("import.report.more", {n: count(report.more)})));
  dialog.addEventListener("close", () => tell(controller, report));
}

// All that is said of one chat as one entry.
function ofChats(remarks) {
  const entries = new Map();
  for (const remark of remarks) entries.set(remark.chat, {...remark, why: [...(entries.get(remark.chat)?.why ?? []), remark.why]});
  return [...entries.values()];
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
    window.addEventListener(kind, (/** @type {DragEvent} */ event) => {
      if (event.defaultPrevented || !carried(event)) return;
      event.preventDefault();
      if (kind === "drop") toast(t("drop.nowhere", {name: event.dataTransfer.files[0]?.name ?? ""}), {wrong: true});
    });
  }
}

export const isChatFile = (file) => /\.(jsonl?|md|markdown|txt|zip)$/i.test(file.name) || file.type === "application/json";
