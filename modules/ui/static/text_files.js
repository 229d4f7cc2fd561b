// Text files for a message: read here in the browser, told where they cannot be, and opened again from the message.

import {get} from "./api.js";
import {copyText, h, icon, iconButton, toast} from "./dom.js";
import {openSheet} from "./sheet.js";
import {count, t} from "./words.js";

export const MOST_FILES = 16;
export const MOST_CHARACTERS = 1_000_000;
const LARGEST = 4 * MOST_CHARACTERS; // bytes of so many characters
const DOCUMENT = /\.(pdf|docx?|xlsx?|pptx?|odt|ods|odp|rtf|epub|pages|numbers|key)$/i;
/** @type {[number[], string][]} */
const MARKS = [[[0xef, 0xbb, 0xbf], "utf-8"], [[0xff, 0xfe], "utf-16le"], [[0xfe, 0xff], "utf-16be"]];

// {name, text} of a file; what is none is told in one sentence, and undefined comes back. take({name, text}): for what
// people let in after that sentence.
export async function readText(file, take) {
  const {name} = file;
  const refuse = (key, values = {}, action = null) => void toast(t(key, {name, ...values}), {wrong: true, action});
  if (DOCUMENT.test(name)) return refuse("files.document");
  if (file.size > LARGEST) return refuse("files.long", {most: count(MOST_CHARACTERS)});
  let bytes;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch {
    return refuse("files.unreadable");
  }
  const mark = MARKS.find(([start]) => start.every((byte, at) => bytes[at] === byte));
  if (!mark && bytes.includes(0)) return refuse("files.binary");
  const text = decoded(bytes, mark?.[1] ?? "utf-8");
  if (text === null) {
    const chinese = mark ? null : decoded(bytes, "gb18030");
    if (chinese === null || !/[\u4e00-\u9fff]/.test(chinese)) return refuse("files.encoding");
    return refuse("files.gbk", {}, {label: t("files.gbk.read"), run: () => take({name, text: chinese})});
  }
  if (!text.trim()) return refuse("files.empty");
  if (text.includes("\0")) return refuse("files.binary");
  return {name, text};
}

function decoded(bytes, encoding) {
  try {
    return new TextDecoder(encoding, {fatal: true}).decode(bytes);
  } catch {
    return null;
  }
}

// One file as a button that opens it; text() gives what is in it.
export function chip(host, name, characters, text) {
  const open = async () => {
    const words = await text();
    if (words === undefined) return;
    const sheet = openSheet(host(), name, {wide: true, tools: [iconButton("copy", t("copy"), () => copyText(words))]});
    sheet.body.append(h("pre", {class: "tl-prompt", tabindex: "0"}, words));
  };
  return h("button", {type: "button", class: "tl-file", title: name, onclick: open},
    icon("file"), h("span", {class: "tl-file-name"}, name), h("span", {class: "tl-file-size"}, t("files.size", {n: count(characters)})));
}

// The files of a message of the user.
export function drawFiles(view) {
  const files = view.view.files ?? [];
  const key = JSON.stringify(files);
  if ((view.filesKey ?? "[]") === key) return;
  view.filesKey = key;
  view.files?.remove();
  view.files = null;
  if (!files.length) return;
  const text = (at) => async () => (await get(`/messages/${view.view.id}`)).files[at]?.text;
  view.files = h("div", {class: "tl-files"},
    files.map(([name, characters], at) => chip(() => view.element.closest(".tl"), name, characters, text(at))));
  view.body.before(view.files);
}
