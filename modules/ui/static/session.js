// The Session tab: what this browser prefers, the keys, and what the server runs.

import {address, attempt, get} from "./api.js";
import {copyText, h} from "./dom.js";
import {keyList} from "./keys.js";
import {t} from "./words.js";

function choice(words, key, choices) {
  const select = h("select", {}, choices.map(([value, text]) => h("option", {value}, text)));
  select.value = localStorage.getItem(key) ?? "auto";
  select.addEventListener("change", () => {
    localStorage.setItem(key, select.value);
    location.reload();
  });
  return h("label", {class: "tl-field"}, h("span", {}, words), select);
}

export async function start(element) {
  const host = element.querySelector(".tl-session");
  const facts = h("dl", {class: "tl-facts"});
  const copy = h("button", {type: "button", class: "tl-strong", onclick: () =>
    copyText([...facts.querySelectorAll("dt")].map((name) => `${name.textContent}: ${name.nextSibling.textContent}`).join("\n"))}, t("server.copy"));
  const account = h("div");
  host.replaceChildren(
    h("section", {}, h("h2", {}, t("session.look")),
      choice(t("session.theme"), "textloom-theme", [["auto", t("session.auto")], ["light", t("theme.light")], ["dark", t("theme.dark")]]),
      choice(t("session.language"), "textloom-language", [["auto", t("session.auto")], ["en", "English"], ["zh-CN", "中文"]])),
    h("section", {}, h("h2", {}, t("session.keys")), keyList()),
    h("section", {}, h("h2", {}, t("server")), facts, copy),
    account);
  const draw = async () => {
    if (!host.offsetParent || document.hidden) return;
    const server = await attempt(() => get("/server"));
    if (!server) return;
    facts.replaceChildren(...Object.entries(server.facts).flatMap(([name, value]) =>
      value === "" ? [] : [h("dt", {}, t(`fact.${name}`) === `fact.${name}` ? name : t(`fact.${name}`)), h("dd", {}, String(value))]));
    if (server.owner && !account.childNodes.length) {
      account.replaceChildren(h("section", {}, h("h2", {}, t("session.account")), h("p", {}, t("session.login", {name: server.owner})),
        h("form", {method: "post", action: address("/../logout")}, h("button", {class: "tl-quiet"}, t("session.logout")))));
    }
  };
  new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) draw(); }).observe(host);
}
