// Small tools for the page: elements, icons, menus, messages that pass. Text goes in as text, never as HTML.

import {busyWhile} from "./busy.js";
import {t} from "./words.js";

const STROKES = {
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM20 20l-4-4",
  sidebar: "M4 5h16v14H4zM9.5 5v14",
  send: "M12 19V5M6 11l6-6 6 6",
  copy: "M9 9h11v11H9zM5 15V4h11",
  check: "M5 12.5l4.5 4.5L19 7",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  again: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  onward: "M5 6v12l7-6zM12 6v12l7-6z",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  branch: "M7 4v16M7 14c0-4 10-2 10-7M17 4.5a1.5 1.5 0 1 0 0 .1",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M6 9l6 6 6-6",
  more: "M6 11.400a.6.6 0 1 0 0 1.200.6.6 0 0 0 0-1.200zM12 11.400a.6.6 0 1 0 0 1.200.6.6 0 0 0 0-1.200zM18 11.400a.6.6 0 1 0 0 1.200.6.6 0 0 0 0-1.200z",
  pin: "M9 4h6l-1 6 3 3H7l3-3zM12 13v7",
  sliders: "M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4",
  chip: "M7 7h10v10H7zM10 3v4M14 3v4M10 17v4M14 17v4M3 10h4M3 14h4M17 10h4M17 14h4",
  gear: "M4 6h16M4 12h16M4 18h16",
  upload: "M12 15V4M7.5 8.5L12 4l4.5 4.5M5 15v5h14v-5",
  download: "M12 4v11M7.5 10.5L12 15l4.5-4.5M5 15v5h14v-5",
  face: "M12 12.5a4.2 4.2 0 1 0 0-8.4 4.2 4.2 0 0 0 0 8.4zM4.5 20.5c.6-4 3.6-5.5 7.5-5.5s6.9 1.5 7.5 5.5",
  clip: "M18.5 11.5l-7 7a4.2 4.2 0 0 1-6-6l8-8a2.8 2.8 0 0 1 4 4l-7.500 7.500a1.400 1.400 0 0 1-2-2l6.500-6.500",
  file: "M6 3h8l4 4v14H6zM14 3v4h4M9 12h6M9 16h6",
  picture: "M4 5h16v14H4zM4 16l4.5-4.5 4 4 3-3L20 17M15.5 9.5h.01",
  close: "M6 6l12 12M18 6L6 18",
  star: "M12 4l2.4 5.2 5.6.6-4.2 3.8 1.2 5.6L12 16.400l-5 2.8 1.200-5.600L4 9.800l5.600-.600z",
  heat: "M4 8h5v8H4zM9.500 8h5v8h-5zM15 8h5v8h-5zM6 12h1M11.500 12h1M17 12h1",
  eye: "M3 12c3-5 6-6.500 9-6.500s6 1.500 9 6.500c-3 5-6 6.500-9 6.500S6 17 3 12zM12 9.500a2.500 2.500 0 1 0 0 5 2.500 2.500 0 0 0 0-5z",
  columns: "M4 5h7v14H4zM13 5h7v14h-7z",
  diff: "M6 7h6M9 4v6M12 17h6M5 20L19 4",
  repeat: "M5 11V9a3 3 0 0 1 3-3h10M15 3l3 3-3 3M19 13v2a3 3 0 0 1-3 3H6M9 21l-3-3 3-3",
  code: "M8 7l-5 5 5 5M16 7l5 5-5 5M13.500 5l-3 14",
  balance: "M12 4v16M6 20h12M5 8h14M5 8l-2.500 6h5zM19 8l-2.500 6h5z",
  map: "M6 5.500v13M6 9c0 3 10 1 10 5v4.500M6 4a1.500 1.500 0 1 0 0 .1M6 18.500a1.500 1.500 0 1 0 0 .1M16 18.500a1.500 1.500 0 1 0 0 .1",
  keyboard: "M3 7h18v11H3zM7 11h.01M11 11h.01M15 11h.01M8 15h8",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("tl-icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", name === "stop" ? "M7 7h10v10H7z" : STROKES[name]);
  if (name === "stop") path.setAttribute("fill", "currentColor");
  svg.append(path);
  return svg;
}

// h("button", {class: "x", onclick: f, "aria-label": "…"}, children): strings become text.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "onclick" && tag === "button") element.addEventListener("click", (event) => busyWhile(element, value(event)));
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && !name.includes("-") && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const drawnOf = new WeakMap(); // element → the value that was drawn in it last, as JSON

// Draw what shows `value` in `element`, where that is not what was drawn there last: what people have under their hands stays.
export function keyed(element, value, draw) {
  const key = JSON.stringify(value);
  if (drawnOf.get(element) === key) return;
  drawnOf.set(element, key);
  draw();
}

// Have `keyed` draw the next time, whatever the value.
export function forgetDrawn(element) {
  drawnOf.delete(element);
}

// A button that is only an icon: its label is its name for screen readers, and its tooltip.
export function iconButton(name, label, action, extra = {}) {
  const button = h("button", {type: "button", "aria-label": label, title: label, onclick: action, ...extra}, icon(name));
  button.classList.add("tl-icon-button");
  return button;
}

// --- messages that pass

let shelf = null;

// seconds: 0 stays until it is closed. Returns what closes it.
export function toast(words, {action = null, wrong = false, seconds = wrong ? 9 : 6} = {}) {
  shelf ??= h("div", {class: "tl-toasts"});
  liftToasts();
  const box = h("div", {class: `tl-toast${wrong ? " tl-wrong" : ""}`, role: wrong ? "alert" : "status"}, h("span", {}, words));
  const leave = () => box.remove();
  if (action) {
    box.append(h("button", {type: "button", class: "tl-link", onclick: () => { leave(); action.run(); }}, action.label));
  }
  box.append(iconButton("close", t("close"), leave));
  shelf.append(box);
  while (shelf.children.length > 3) shelf.firstChild.remove();
  const timer = seconds && setTimeout(leave, seconds * 1000);
  box.addEventListener("mouseenter", () => clearTimeout(timer));
  return leave;
}

// What passes stands in the dialog in front, if one is open: all else is out of reach then.
export function liftToasts() {
  const front = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  if (shelf && shelf.parentNode !== front) front.append(shelf);
}

// --- menus

let openMenu = null;

export function closeMenu() {
  openMenu?.close();
}

// A list of choices under a button. items: {label, note, icon, checked, danger, disabled, run} or null for a line.
export function showMenu(anchor, items, {title = "", wide = false} = {}) {
  const again = openMenu?.anchor === anchor;
  closeMenu();
  if (again) return;
  const box = h("div", {class: `tl-menu${wide ? " tl-wide" : ""}`, role: "menu", "aria-label": title || anchor.ariaLabel});
  if (title) box.append(h("div", {class: "tl-menu-title", "aria-hidden": "true"}, title));
  for (const item of items) {
    if (!item) {
      box.append(h("hr"));
      continue;
    }
    box.append(
      h(
        "button",
        {
          type: "button",
          role: item.checked === undefined ? "menuitem" : "menuitemradio",
          "aria-checked": item.checked === undefined ? undefined : String(item.checked),
          class: item.danger ? "tl-danger" : "",
          style: item.share === undefined ? undefined : `--share: ${(item.share * 100).toFixed(1)}%`,
          disabled: Boolean(item.disabled),
          title: item.why ?? undefined,
          onclick: () => { close(true); anchorWaits(anchor, item.run()); },
        },
        item.icon ? icon(item.icon) : null,
        h("span", {class: "tl-menu-label"}, item.label),
        item.note ? h("span", {class: "tl-menu-note"}, item.note) : null,
        item.checked ? icon("check") : null,
      ),
    );
  }
  const host = anchor.closest(".tl") ?? document.body;
  host.append(box);
  place(box, anchor, host);
  anchor.setAttribute("aria-expanded", "true");

  const outside = (event) => { if (!box.contains(event.target) && !anchor.contains(event.target)) close(); };
  const keys = (event) => {
    const buttons = [...box.querySelectorAll("button:not(:disabled)")];
    const at = buttons.indexOf(document.activeElement);
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (step) buttons[(at + step + buttons.length) % buttons.length]?.focus();
    else if (event.key === "Home") buttons[0]?.focus();
    else if (event.key === "End") buttons.at(-1)?.focus();
    else if (event.key === "Escape") close(true);
    else if (event.key === "Tab") { close(); return; }
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  function close(focus = false) {
    document.removeEventListener("pointerdown", outside);
    box.remove();
    anchor.setAttribute("aria-expanded", "false");
    if (openMenu?.close === close) openMenu = null;
    if (focus) anchor.focus();
  }
  document.addEventListener("pointerdown", outside);
  box.addEventListener("keydown", keys);
  openMenu = {anchor, close};
  (box.querySelector("[aria-checked=true]") ?? box.querySelector("button:not(:disabled)"))?.focus();
}

// What was chosen asks the server: the button of the menu shows it, and can be used meanwhile.
function anchorWaits(anchor, work) {
  if (typeof work?.then !== "function") return;
  anchor.classList.add("tl-waits");
  const end = () => anchor.classList.remove("tl-waits");
  work.then(end, end);
}

function place(box, anchor, host) {
  const around = host.getBoundingClientRect();
  const at = anchor.getBoundingClientRect();
  const left = Math.min(at.left - around.left, around.width - box.offsetWidth - 8);
  const below = at.bottom - around.top + 6;
  const fits = below + box.offsetHeight < around.height - 8;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${fits ? below : Math.max(8, at.top - around.top - box.offsetHeight - 6)}px`;
}

// A dialog with a form; run(values, changed) gets what the fields hold, and of that what was changed in it.
// A question (without fields) can be left by Cancel as well; what only tells something has one button.
export function showDialog(host, title, fields, label, run, content = null, {cancel = fields.length > 0} = {}) {
  const controls = new Map();
  const rows = fields.map(({name, words, help, kind = "text", value, choices}) => {
    const control =
      kind === "lines" ? h("textarea", {rows: "4", name}) :
      kind === "choice" ? h("select", {name}, choices.map(([key, text]) => h("option", {value: key}, text))) :
      h("input", {type: kind, name, ...(kind === "number" ? {step: "any"} : {})});
    control.value = value ?? "";
    controls.set(name, control);
    return h("label", {class: "tl-field"}, h("span", {}, words), control, help ? h("small", {}, help) : null);
  });
  const dialog = h("dialog", {class: "tl-dialog", "aria-label": title});
  const form = h("form", {method: "dialog"},
    h("h2", {}, title), content, rows,
    h("div", {class: "tl-dialog-foot"},
      cancel ? h("button", {type: "button", class: "tl-quiet", onclick: () => dialog.close()}, t("cancel")) : null,
      h("button", {type: "submit", class: "tl-strong"}, label)));
  /** @returns {[string, any][]} */
  const read = () => [...controls].map(([name, control]) => [name, control.value]);
  const before = new Map(read());
  form.addEventListener("submit", () => run(Object.fromEntries(read()), Object.fromEntries(read().filter(([name, value]) => value !== before.get(name)))));
  dialog.append(form);
  return showModal(host, dialog);
}

// A dialog around a form of the caller's own; run() when it is accepted, leave() when it is not.
export function showForm(host, title, content, label, run, leave = () => {}) {
  const dialog = h("dialog", {class: "tl-dialog", "aria-label": title});
  let accepted = false;
  const form = h("form", {method: "dialog", onsubmit: () => { accepted = true; run(); }},
    h("h2", {}, title), content,
    h("div", {class: "tl-dialog-foot"},
      h("button", {type: "button", class: "tl-quiet", onclick: () => dialog.close()}, t("cancel")),
      h("button", {type: "submit", class: "tl-strong"}, label)));
  dialog.append(form);
  dialog.addEventListener("close", () => { if (!accepted) leave(); });
  return showModal(host, dialog);
}

// Returns the dialog, to be closed.
export function showModal(host, dialog) {
  dialog.addEventListener("close", () => { liftToasts(); dialog.remove(); });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  host.append(dialog);
  dialog.showModal();
  return dialog;
}

// Show a chat, from another tab of the page.
export function openChat(id) {
  const url = new URL(location.href);
  url.searchParams.set("chat", id);
  history.pushState({}, "", url);
  window.dispatchEvent(new PopStateEvent("popstate"));
  document.querySelector("#tab-chat-button, [role=tab][aria-controls=tab-chat]")?.click();
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.body.appendChild(h("textarea", {class: "tl-hidden"}));
    area.value = text;
    area.select();
    document.execCommand("copy"); // pages that are not on https have no clipboard object
    area.remove();
  }
  toast(t("copied"), {seconds: 2});
}
