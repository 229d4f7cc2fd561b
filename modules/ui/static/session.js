// The Session tab: what the user prefers, the keys, everything as one file, and what the server runs.

import {address, attempt, patch, post, send} from "./api.js";
import {copyText, h, toast} from "./dom.js";
import {followWhileShown} from "./events.js";
import {keyList} from "./keys.js";
import {chooseFiles} from "./sheet.js";
import {deletedList, say} from "./undo.js";
import {t} from "./words.js";

const {page, tabs} = window.TEXTLOOM;

// A choice that is kept for the user on the server; the page is drawn again where that shows it.
function choice(name, choices, {reload = true} = {}) {
  const select = h("select", {}, choices.map(([value, text]) => h("option", {value}, text)));
  select.value = page[name];
  select.addEventListener("change", async () => {
    if (await attempt(() => patch("/page", {[name]: select.value})) === undefined) {
      select.value = page[name];
      return;
    }
    page[name] = select.value;
    if (reload) location.reload();
    else toast(t("session.kept"), {seconds: 3});
  });
  return h("label", {class: "tl-field"}, h("span", {}, t(`page.${name}`)), select);
}

function everything() {
  const button = h("button", {type: "button", class: "tl-quiet", onclick: () => chooseFiles(".zip,application/zip", async ([file]) => {
    button.disabled = true;
    const found = await attempt(() => send("/everything", file));
    button.disabled = false;
    if (!found) return;
    toast(t("session.imported", found), {seconds: 9});
    say(found.replaced);
    for (const problem of found.problems) toast(problem, {wrong: true});
  })}, t("session.import"));
  return h("section", {}, h("h2", {}, t("session.everything")), h("p", {}, t("session.everything.help")),
    h("div", {class: "tl-row-of-buttons"},
      h("a", {class: "tl-strong", href: address("/everything"), download: ""}, t("session.export")), button));
}

export async function start(element) {
  const host = element.querySelector(".tl-session");
  const facts = h("dl", {class: "tl-facts"});
  const copy = h("button", {type: "button", class: "tl-strong", onclick: () =>
    copyText([...facts.querySelectorAll("dt")].map((name) => `${name.textContent}: ${name.nextSibling.textContent}`).join("\n"))}, t("server.copy"));
  const defaults = h("button", {type: "button", class: "tl-quiet", style: "visibility: hidden", onclick: async () => {
    say(await attempt(() => post("/defaults")));
  }}, t("parameters.default"));
  const account = h("div");
  const deleted = deletedList(host);
  host.replaceChildren(
    h("section", {}, h("h2", {}, t("session.look")),
      choice("theme", [["auto", t("session.auto")], ["light", t("theme.light")], ["dark", t("theme.dark")]]),
      choice("language", [["auto", t("session.auto")], ["en", "English"], ["zh", "中文"]]),
      choice("first_tab", tabs.map((name) => [name, t(`tab.${name}`)]), {reload: false}),
      h("p", {class: "tl-quiet-text"}, t("session.defaults")), defaults),
    everything(),
    deleted.section,
    h("section", {}, h("h2", {}, t("session.keys")), keyList()),
    h("section", {}, h("h2", {}, t("server")), facts, copy),
    account);
  followWhileShown(host, {kind: "deleted"}, deleted.draw);
  followWhileShown(host, {kind: "server"}, (server) => {
    defaults.style.visibility = server.admin ? "" : "hidden"; // its place is kept: nothing below moves under the pointer
    facts.replaceChildren(...Object.entries(server.facts).flatMap(([name, value]) =>
      value === "" ? [] : [h("dt", {}, t(`fact.${name}`) === `fact.${name}` ? name : t(`fact.${name}`)), h("dd", {}, value.words ? t(value.words, value.values) : String(value))]));
    if (server.owner && !account.childNodes.length) {
      account.replaceChildren(h("section", {}, h("h2", {}, t("session.account")), h("p", {}, t("session.login", {name: server.owner})),
        h("form", {method: "post", action: address("/../logout")}, h("button", {class: "tl-quiet"}, t("session.logout")))));
    }
  });
}
