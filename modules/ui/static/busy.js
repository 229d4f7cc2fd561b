// Buttons that ask the server: from the click until the answer they are off and say so, and a second click does nothing.

import {t} from "./words.js";

const ends = new Map(); // id of one of Gradio's buttons → what ends its waiting

// Returns what ends it. The button keeps the focus, which a disabled one would lose.
export function busy(button) {
  button.setAttribute("aria-busy", "true");
  button.setAttribute("aria-disabled", "true");
  if (button.id) {
    const key = `busy.${button.id}`;
    const words = t(key);
    button.dataset.busy = words === key ? t("busy") : words;
  }
  return () => {
    for (const name of ["aria-busy", "aria-disabled", "data-busy"]) button.removeAttribute(name);
  };
}

// work: what the click of a button began; what is no promise is over already.
export function busyWhile(button, work) {
  if (typeof work?.then !== "function") return;
  const end = busy(button);
  work.then(end, end);
}

// What a form sends: its button waits for the answer.
export function onSubmit(form, send) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busyWhile(form.querySelector("[type=submit]"), send());
  });
}

// For a button of ours that begins one of Gradio's events, which events.answered names `id`.
export function untilAnswered(id, begin) {
  return new Promise((resolve) => {
    ends.set(id, resolve);
    begin();
  });
}

// The answer to one of Gradio's buttons has come (events.asks).
function answered(id) {
  ends.get(id)?.();
  ends.delete(id);
  window.dispatchEvent(new Event("tl-changed"));
}

// Gradio says of an event that never reached the server, or whose answer never came, that it reconnects, and no more.
function lost() {
  for (const end of ends.values()) end();
  ends.clear();
}

const ask = window.fetch;
window.fetch = async (...request) => {
  const reply = ask(...request);
  if (String(request[0] instanceof Request ? request[0].url : request[0]).includes("/gradio_api/queue/")) reply.then((answer) => answer.ok || lost(), lost);
  return reply;
};

function stop(event) {
  event.preventDefault();
  event.stopImmediatePropagation();
}

window.addEventListener("click", (event) => {
  const button = event.target.closest?.("button");
  if (!button) return;
  if (button.ariaBusy === "true") stop(event);
  else if (button.classList.contains("tl-asks") && !button.disabled) ends.set(button.id, busy(button));
}, true);
window.addEventListener("submit", (event) => {
  if (/** @type {Element} */ (event.target).querySelector("[type=submit]")?.ariaBusy === "true") stop(event);
}, true);
window.TEXTLOOM.answered = answered;
