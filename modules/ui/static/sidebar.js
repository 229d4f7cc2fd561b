// The list of conversations: search, groups by date, and what can be done with each.

import {attempt, get, patch, post, remove} from "./api.js";
import {h, icon, iconButton, showDialog, showMenu, toast} from "./dom.js";
import {exportItem, importButton, importFiles, isChatFile, takeDrops} from "./transfer.js";
import {t} from "./words.js";

const DAY = 86400;
const PAGE = 100; // chats asked for at a time, and
const MOST = 1000; // as many as the server tells at once

export class Sidebar {
  // controller: {open(id), fresh(), current, host}
  constructor(controller) {
    this.controller = controller;
    this.search = h("input", {type: "search", placeholder: t("search"), "aria-label": t("search.long"), autocomplete: "off"});
    this.rows = [];
    this.known = false; // what there is, as the server tells it
    this.found = ""; // what was searched for, to find them
    this.list = h("nav", {class: "tl-list", "aria-label": t("chats")});
    this.older = h("button", {type: "button", class: "tl-quiet tl-older", onclick: () => this.more()}, t("chats.more"));
    this.list.addEventListener("scroll", () => {
      const {scrollHeight, scrollTop, clientHeight} = this.list;
      if (this.older.isConnected && scrollHeight - scrollTop - clientHeight < 600) this.more();
    }, {passive: true});
    this.element = h("aside", {class: "tl-side", "aria-label": t("chats")},
      h("div", {class: "tl-side-head"},
        h("button", {type: "button", class: "tl-new", onclick: () => controller.fresh()}, icon("plus"), h("span", {}, t("chat.new"))),
        importButton(controller),
        iconButton("close", t("sidebar.hide"), () => this.show(false), {class: "tl-side-close"})),
      h("label", {class: "tl-search"}, icon("search"), this.search),
      this.list);
    takeDrops(this.element, isChatFile, (files) => importFiles(controller, files), "drop.chats");
    let timer = 0;
    this.search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.refresh(), 180);
    });
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.search.value) {
        event.stopPropagation();
        this.search.value = "";
        this.refresh();
      }
    });
    this.whole = true;
    const wide = matchMedia("(min-width: 900px)").matches;
    this.visible = wide && localStorage.getItem("textloom-sidebar") !== "closed";
  }

  get visible() {
    return this.element.dataset.open === "true";
  }

  set visible(open) {
    this.element.dataset.open = String(open);
    this.element.inert = !open;
  }

  show(open) {
    this.visible = open;
    if (matchMedia("(min-width: 900px)").matches) localStorage.setItem("textloom-sidebar", open ? "open" : "closed");
    if (open && !matchMedia("(min-width: 900px)").matches) this.search.focus();
    this.controller.sidebarChanged?.(open);
  }

  // A chat was opened: on a narrow page the list lies over it.
  makeWay() {
    if (this.visible && !matchMedia("(min-width: 900px)").matches) this.show(false);
  }

  // The list as it is now, as far down as it is shown.
  async refresh() {
    const wanted = this.search.value.trim();
    const shown = wanted === this.found ? this.rows.length : 0;
    const turn = this.turn = {};
    const rows = [];
    let whole = false;
    do {
      const page = await attempt(() => this.page(wanted, Math.min(MOST, Math.max(PAGE, shown - rows.length)), rows.at(-1)));
      if (!page || turn !== this.turn) return;
      rows.push(...page.rows);
      whole = page.whole;
    } while (!whole && rows.length < shown);
    Object.assign(this, {rows, whole, found: wanted, known: true});
    this.draw();
  }

  // What follows the rows that are shown.
  async more() {
    if (this.loading) return;
    const turn = this.turn;
    this.loading = true;
    const page = await attempt(() => this.page(this.found, PAGE, this.rows.at(-1)));
    this.loading = false;
    if (!page || turn !== this.turn) return;
    const focused = document.activeElement === this.older;
    const known = new Set(this.rows.map((row) => row.id));
    const rows = page.rows.filter((row) => !known.has(row.id));
    this.rows.push(...rows);
    this.whole = page.whole;
    const first = this.append(rows);
    if (focused) first?.querySelector("a").focus();
  }

  async page(search, limit, last) {
    const after = last ? `&after=${Number(last.pinned)},${last.updated},${last.id}` : "";
    const rows = await get(`?search=${encodeURIComponent(search)}&limit=${limit}${after}`);
    return {rows, whole: rows.length < limit};
  }

  draw() {
    const focused = document.activeElement?.closest?.(".tl-row")?.dataset.id;
    this.list.replaceChildren();
    this.append(this.rows);
    if (this.known && !this.rows.length) this.list.append(h("p", {class: "tl-nothing"}, this.found ? t("search.nothing") : t("chats.none")));
    if (focused) this.list.querySelector(`.tl-row[data-id="${focused}"] a`)?.focus();
  }

  // Draw rows behind those that are there; returns the first of them.
  append(rows) {
    const elements = rows.map((row) => this.row(row));
    this.older.remove();
    for (const [at, row] of rows.entries()) {
      const name = row.pinned ? t("group.pinned") : age(row.updated);
      let group = this.list.lastElementChild;
      if (group?.dataset.group !== name) {
        group = h("section", {"data-group": name}, h("h2", {}, name), h("ul"));
        this.list.append(group);
      }
      group.lastElementChild.append(elements[at]);
    }
    if (!this.whole) this.list.append(this.older);
    return elements[0];
  }

  row(row) {
    const current = row.id === this.controller.current;
    const link = h("a", {href: `?chat=${row.id}`, class: "tl-row-link", "aria-current": current ? "page" : undefined,
      onclick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        this.controller.open(row.id, row.found ? row.message_id : null);
        this.makeWay();
      }},
      h("span", {class: "tl-row-title"}, row.title || t("chat.untitled")),
      row.found ? h("span", {class: "tl-row-found"}, row.found) : null,
      row.running ? h("span", {class: "tl-beat tl-on", title: t("chat.running")}) : null);
    const more = iconButton("more", t("chat.more", {title: row.title || t("chat.untitled")}),
      (event) => this.menu(event.currentTarget, row), {"aria-haspopup": "menu", "aria-expanded": "false"});
    return h("li", {class: `tl-row${current ? " tl-current" : ""}`, "data-id": row.id}, link, more);
  }

  menu(anchor, row) {
    showMenu(anchor, [
      {label: t("rename"), icon: "edit", run: () => this.rename(row)},
      {label: row.pinned ? t("unpin") : t("pin"), icon: "pin", run: () => this.change(row, {pinned: !row.pinned})},
      exportItem(anchor, row),
      null,
      {label: t("delete"), icon: "trash", danger: true, run: () => this.delete(row)},
    ]);
  }

  rename(row) {
    showDialog(this.controller.host, t("rename.title"), [{name: "title", words: t("title"), value: row.title, help: t("rename.help")}],
      t("save"), ({title}) => this.change(row, {title}));
  }

  async change(row, values) {
    await attempt(() => patch(`/${row.id}`, values));
    this.refresh();
  }

  async delete(row) {
    if (await attempt(() => remove(`/${row.id}`)) === undefined) return;
    if (row.id === this.controller.current) this.controller.fresh();
    this.refresh();
    toast(t("chat.deleted", {title: row.title || t("chat.untitled")}), {
      action: {label: t("undo"), run: async () => {
        await attempt(() => post(`/${row.id}/restore`));
        this.refresh();
      }},
    });
  }
}

function age(updated) {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  if (updated >= midnight) return t("group.today");
  if (updated >= midnight - DAY) return t("group.yesterday");
  if (updated >= midnight - 7 * DAY) return t("group.week");
  if (updated >= midnight - 30 * DAY) return t("group.month");
  return t("group.older");
}
