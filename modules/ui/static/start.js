// The chat view from the first moment: in a page of its own while Gradio makes the tabs, then in its tab, as it is.

import {h} from "./dom.js";
import "./gradio_stream.js";
import "./undo.js";
import {Chat} from "./main.js";
import {nameInOurWords} from "./gradio_names.js";
import {t} from "./words.js";

const {first, openTab, tabs} = window.TEXTLOOM;

function begin(place) {
  place.dataset.started = "true";
  window.textloomChat = new Chat(place);
  window.textloomChat.start();
}

// What is typed, marked and scrolled stays, where the browser can move an element without taking it out.
function replace(place, element) {
  const focused = document.activeElement;
  if (place.parentNode.moveBefore) place.parentNode.moveBefore(element, place);
  else place.before(element);
  place.remove();
  if (element.contains(focused)) focused.focus({preventScroll: true});
}

function earlyTab(name) {
  return h("button", {type: "button", class: name === "chat" ? "tl-current" : "", onclick: () => openTab(name)}, t(`tab.${name}`));
}

// Gradio has made the place for the chat view.
export function start(element) {
  const place = element.querySelector(".tl");
  const early = document.getElementById("tl-early");
  if (early) {
    replace(place, early.querySelector(".tl"));
    early.remove();
  } else if (!place.dataset.started) begin(place);
}

if (first === "chat") {
  const place = h("div", {class: "tl"});
  document.body.prepend(h("div", {id: "tl-early"}, h("nav", {"aria-label": t("tabs")}, ...tabs.map(earlyTab)), place));
  begin(place);
}
nameInOurWords();
