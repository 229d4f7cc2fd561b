// What could come next, and how likely: before and after the sampling settings. Drawn by hand: a list of bars.

import {addStyle, post, Refused} from "./api.js";
import {h} from "./dom.js";
import {count, t} from "./words.js";

addStyle("writing.css");

// Spaces and line ends of a token, so that they can be seen.
export function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
}

const percent = (value) => (value >= 0.0995 ? `${(value * 100).toFixed(0)} %` : value >= 0.00095 ? `${(value * 100).toFixed(1)} %` : value > 0 ? "< 0.1 %" : "0 %");

// Ask the server for the next token after `text` and draw it into `host`. pick(text): what a click on a token does; null for nothing.
export async function drawDistribution(host, text, {pick = null, rows = 24} = {}) {
  const asked = (host.asked = (host.asked ?? 0) + 1);
  let made;
  try {
    made = await post("/writing/distribution", {text, top: rows});
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (host.asked === asked) host.replaceChildren(h("p", {class: "tl-quiet-text"}, error.status === 503 ? t("distribution.no.model") : error.message));
    return;
  }
  if (host.asked !== asked) return;
  const most = Math.max(...made.tokens.map((token) => Math.max(token.before, token.after ?? 0)), 1e-9);
  const bar = (kind, value) => h("span", {class: `tl-bar tl-bar-${kind}`, style: `width:${(value / most) * 100}%`});
  const items = made.tokens.map(({id, text: piece, before, after}) => {
    const kept = after === null || after > 0;
    const words = after === null ? percent(before) : `${percent(before)} → ${percent(after)}`;
    const inside = [h("code", {}, visible(piece)), h("span", {class: "tl-bars"}, bar("before", before), after === null ? null : bar("after", after)), h("span", {class: "tl-odds"}, words)];
    return h("li", {class: kept ? "" : "tl-dropped", title: t("distribution.token", {id})},
      pick ? h("button", {type: "button", "aria-label": `${visible(piece)} ${words}`, onclick: () => pick(piece)}, inside) : h("div", {}, inside));
  });
  const told = made.kept === null ? t("distribution.before.only") : t(made.kept < made.most ? "distribution.kept" : "distribution.kept.most", {kept: count(made.kept)});
  host.replaceChildren(
    h("div", {class: "tl-distribution-head"}, h("span", {class: "tl-key tl-key-before"}, t("distribution.before")),
      made.kept === null ? null : h("span", {class: "tl-key tl-key-after"}, t("distribution.after")), h("strong", {}, told)),
    h("ol", {class: "tl-distribution", "aria-label": t("distribution")}, items));
}

// The live plot of the Parameters tab: it draws again whenever the settings (`watched`) change.
export function start(element) {
  const host = element.querySelector(".tl-live-plot");
  if (host.dataset.started) return;
  host.dataset.started = "true";
  const text = h("input", {type: "text", value: localStorage.getItem("textloom-plot-text") ?? t("distribution.example")});
  const body = h("div", {class: "tl-plot-body", role: "region", tabindex: "0", "aria-label": t("distribution")});
  host.replaceChildren(h("h2", {}, t("distribution.title")), h("label", {class: "tl-field"}, h("span", {}, t("distribution.text")), text), body);
  let timer = 0;
  const draw = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      if (host.offsetParent) await drawDistribution(body, text.value || t("distribution.example"), {rows: 20});
    }, 150);
  };
  text.addEventListener("input", () => {
    localStorage.setItem("textloom-plot-text", text.value);
    draw();
  });
  const summary = document.querySelector(".tl-summary");
  if (summary) new MutationObserver(draw).observe(summary, {subtree: true, childList: true, characterData: true});
  new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) draw(); }).observe(host);
}
