// Characters: whom the model plays. The list, writing one, and their names and pictures beside messages.

import {address, attempt, get, post, put, remove, send} from "./api.js";
import {onSubmit} from "./busy.js";
import {reportUploads} from "./card_report.js";
import {h, icon, iconButton} from "./dom.js";
import {chooseFiles, openSheet} from "./sheet.js";
import {say} from "./undo.js";
import {takeDrops} from "./transfer.js";
import {t} from "./words.js";

const MODES = ["chat", "chat-instruct", "instruct"];
const FILES = ".yaml,.yml,.json,.png,.webp,.charx,application/json,image/png,image/webp";
const PICTURES = "image/png,image/jpeg,image/webp,image/gif";
const FIELDS = [
  {name: "name", lines: 0},
  {name: "user", lines: 0},
  {name: "context", lines: 7},
  {name: "greeting", lines: 4},
  {name: "example_dialogue", lines: 4},
];
const CARD_FIELDS = ["personality", "scenario", "system_prompt", "post_history"];
const FORMS = ["png", "v3", "v2", "yaml"];
let edition = 0; // pictures keep their address when they change: this makes it another one

const pictureOf = (id) => address(`/characters/${encodeURIComponent(id)}/picture?v=${edition}`);

// A picture, or the first letter of a name.
export function portrait(name, id) {
  const letter = h("span", {class: "tl-portrait", "aria-hidden": "true"}, [...name.trim()][0] ?? "?");
  if (!id) return letter;
  const image = h("img", {class: "tl-portrait", alt: "", loading: "lazy"});
  image.addEventListener("error", () => image.replaceWith(letter));
  image.src = pictureOf(id);
  return image;
}

// The button in the bar above a conversation.
export class CharacterPick {
  constructor(controller) {
    this.controller = controller;
    this.words = h("span", {class: "tl-pick-name"});
    this.face = h("span", {class: "tl-pick-face"}, icon("face"));
    this.element = h("button", {type: "button", class: "tl-pick tl-character", "aria-haspopup": "dialog", onclick: () => openGallery(controller)},
      this.face, this.words);
    this.draw(null);
  }

  draw(speakers) {
    this.words.textContent = speakers?.name ?? "";
    this.words.hidden = !speakers;
    this.face.replaceChildren(speakers ? portrait(speakers.name, speakers.character) : icon("face"));
    const label = speakers ? t("character.now", {name: speakers.name}) : t("characters");
    this.element.setAttribute("aria-label", label);
    this.element.title = label;
  }
}

// Names and pictures beside the messages of a chat with a character. views: those that are shown.
export function drawSpeakers(views, speakers) {
  for (const view of views) {
    const role = view.view.role;
    const wanted = speakers && (role === "user" || role === "assistant");
    const key = wanted ? `${role}|${speakers.user}|${speakers.name}|${speakers.character}|${edition}` : "";
    if ((view.speakerKey ?? "") === key) continue;
    view.speakerKey = key;
    view.speaker?.remove();
    view.speaker = null;
    if (!wanted) continue;
    const mine = role === "user";
    const name = mine ? speakers.user || t("profile.you") : speakers.name;
    view.speaker = h("div", {class: "tl-speaker"}, mine ? null : portrait(name, speakers.character), h("span", {}, name));
    view.element.prepend(view.speaker);
    view.element.setAttribute("aria-label", name);
  }
}

export async function openGallery(controller) {
  const mode = h("select", {"aria-label": t("mode")}, MODES.map((name) => h("option", {value: name}, t(`mode.${name}`))));
  const usual = controller.seen.engine?.template ? "chat-instruct" : "chat";
  mode.value = localStorage.getItem("textloom-mode") ?? usual;
  const note = h("small", {});
  const explain = () => { note.textContent = t(`mode.${mode.value}.help`); };
  mode.addEventListener("change", () => { localStorage.setItem("textloom-mode", mode.value); explain(); });
  explain();
  const list = h("ul", {class: "tl-gallery"});
  const called = h("input", {type: "text", maxlength: "80", placeholder: t("profile.you"), autocomplete: "nickname"});
  called.addEventListener("change", () => attempt(() => put("/name", {name: called.value})));
  const upload = (files) => uploadCharacters(controller.host, files, draw);
  const sheet = openSheet(controller.host, t("characters"), {wide: true, tools: [
    h("button", {type: "button", class: "tl-quiet tl-with-icon", onclick: () => chooseFiles(FILES, upload, {several: true})}, icon("upload"), t("character.upload")),
    h("button", {type: "button", class: "tl-strong", onclick: () => openEditor(controller, null, draw)}, icon("plus"), t("character.new")),
  ]});
  takeDrops(sheet.dialog, () => true, upload);

  async function begin(id) {
    const answer = await attempt(() => post(`/characters/${encodeURIComponent(id)}/chat`, {mode: mode.value, user: t("profile.you")}));
    if (!answer) return;
    sheet.close();
    await controller.open(answer.chat);
    controller.sidebar.refresh();
  }

  async function draw() {
    const answer = await attempt(() => get("/characters"));
    if (!answer) return;
    called.value = answer.name;
    const times = (name) => answer.characters.filter((row) => row.name === name).length;
    list.replaceChildren(...answer.characters.map((row) => card(row, begin, controller, draw, times(row.name) > 1)));
    if (!answer.characters.length) list.replaceChildren(h("li", {class: "tl-nothing"}, t("characters.none")));
  }
  sheet.body.append(
    h("p", {class: "tl-sheet-lead"}, t("characters.lead")),
    h("div", {class: "tl-gallery-head"},
      h("label", {class: "tl-field"}, h("span", {}, t("mode")), mode, note),
      h("label", {class: "tl-field"}, h("span", {}, t("profile.name")), called, h("small", {}, t("profile.name.help")))),
    list);
  await draw();
}

// several: others have its name, so its file is named too
function card(row, begin, controller, draw, several) {
  const about = row.problem ?? row.about;
  return h("li", {class: "tl-who"},
    h("button", {type: "button", class: "tl-who-begin", disabled: Boolean(row.problem), onclick: () => begin(row.id), "aria-label": t("character.begin", {name: row.name})},
      portrait(row.name, row.pictured ? row.id : null),
      h("span", {class: "tl-who-words"}, h("strong", {}, row.name), several ? h("small", {}, row.id) : null, h("span", {class: row.problem ? "tl-wrong-text" : ""}, about))),
    h("div", {class: "tl-who-tools"},
      iconButton("edit", t("character.edit", {name: row.name}), () => openEditor(controller, row, draw), {disabled: Boolean(row.problem)}),
      iconButton("download", t("character.save", {name: row.name}), () => chooseForm(controller.host, row), {disabled: Boolean(row.problem)}),
      iconButton("trash", row.own ? t("character.delete", {name: row.name}) : t("character.shared"), () => drop(controller, row, draw), {disabled: !row.own})));
}

function chooseForm(host, row) {
  const link = (form) => h("a", {class: "tl-form", href: address(`/characters/${encodeURIComponent(row.id)}/file?form=${form}`), download: "", onclick: () => sheet.close()},
    icon("download"), h("strong", {}, t(`character.form.${form}`)), h("span", {class: "tl-quiet-text"}, t(`character.form.${form}.note`)));
  const sheet = openSheet(host, t("character.save", {name: row.name}));
  sheet.body.append(h("div", {class: "tl-forms"}, FORMS.map(link)));
}

async function drop(controller, row, draw) {
  const note = await attempt(() => remove(`/characters/${encodeURIComponent(row.id)}`));
  if (note === undefined) return;
  const show = () => {
    draw();
    if (controller.current) controller.refresh();
  };
  show();
  say({...note, values: {name: row.name}}, show);
}

async function uploadCharacters(host, files, draw) {
  const came = [];
  for (const file of files) {
    const answer = await attempt(() => send(`/characters/import?file=${encodeURIComponent(file.name)}`, file));
    if (answer) came.push(answer);
  }
  await draw();
  reportUploads(host, came);
}

async function openEditor(controller, row, draw) {
  const kept = row ? await attempt(() => get(`/characters/${encodeURIComponent(row.id)}`)) : {};
  if (!kept) return;
  let picture = null;
  const sheet = openSheet(controller.host, row ? t("character.edit", {name: row.name}) : t("character.new.long"));
  const controls = new Map();
  const face = h("button", {type: "button", class: "tl-face", "aria-label": t("character.picture"), title: t("character.picture"),
    onclick: () => chooseFiles(PICTURES, ([file]) => show(file))});
  const show = (file) => {
    picture = file;
    const image = h("img", {class: "tl-portrait", alt: ""});
    image.src = URL.createObjectURL(file);
    face.replaceChildren(image);
  };
  face.append(row ? portrait(row.name, row.pictured ? row.id : null) : icon("face"));
  takeDrops(face, (file) => file.type.startsWith("image/"), ([file]) => show(file), "drop.picture");
  const field = ({name, lines}) => {
    const control = lines ? h("textarea", {rows: String(lines), name}) : h("input", {type: "text", name, maxlength: name === "name" ? "500" : "80", required: name === "name"});
    control.value = kept[name] ?? "";
    controls.set(name, control);
    return h("label", {class: "tl-field"}, h("span", {}, t(`character.${name}`)), control, h("small", {}, t(`character.${name}.help`)));
  };
  const rows = FIELDS.map(field);
  const more = h("details", {class: "tl-card-fields", open: CARD_FIELDS.some((name) => kept[name])}, h("summary", {}, t("character.more")),
    CARD_FIELDS.map((name) => field({name, lines: 3})));
  const form = h("form", {class: "tl-editor-form"}, h("div", {class: "tl-face-row"}, face, h("div", {}, rows.splice(0, 2))), rows, more, notesOf(kept), loreOf(kept),
    h("div", {class: "tl-dialog-foot"},
      h("button", {type: "button", class: "tl-quiet", onclick: () => sheet.close()}, t("cancel")),
      h("button", {type: "submit", class: "tl-strong"}, t("save"))));
  onSubmit(form, async () => {
    const values = Object.fromEntries([...controls].map(([name, control]) => [name, control.value]));
    const saved = await attempt(() => post("/characters", {...values, replaces: row?.id ?? null}));
    if (!saved) return;
    const pictured = picture ? await attempt(() => send(`/characters/${encodeURIComponent(saved.id)}/picture`, picture)) : null;
    const show = () => {
      edition += 1;
      draw();
      if (controller.current) controller.refresh();
    };
    sheet.close();
    show();
    if (row) say([saved, pictured].filter((note) => note?.undo), show);
  });
  sheet.body.append(form);
  controls.get("name").focus();
}

function notesOf(kept) {
  return kept.notes ? h("details", {class: "tl-card-fields"}, h("summary", {}, t("character.notes")), h("p", {class: "tl-lore-text"}, kept.notes)) : null;
}

// What the book of a card tells the model, to look at.
function loreOf(kept) {
  if (!kept.lore?.length) return null;
  return h("details", {class: "tl-card-fields"}, h("summary", {}, t("character.lore", {n: kept.lore.length})),
    h("small", {}, t("character.lore.help")),
    h("ul", {class: "tl-lore"}, kept.lore.map((entry) => h("li", {class: entry.enabled ? "" : "tl-off"},
      h("strong", {}, entry.title),
      h("span", {class: "tl-quiet-text"}, !entry.enabled ? t("lore.off") : entry.constant ? t("lore.always") : entry.keys.join(", ")),
      h("span", {class: "tl-lore-text"}, entry.text)))));
}
