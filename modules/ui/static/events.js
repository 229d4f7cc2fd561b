// @ts-check
// What the page follows on the server: topics of one event stream, which all tabs of the browser share.

import {EventConnection} from "./event_connection.js";
import {language} from "./words.js";

/** @typedef {import("./event_connection.js").Topic} Topic */
/** @typedef {{topic: Topic, tell: (data: any, position: string) => void, hidden: () => boolean}} Followed */

const ALIVE = 20_000; // milliseconds; the worker forgets tabs that say nothing for a minute
const STATIC = new URL("chats/static/", document.baseURI);
const tab = Math.random().toString(36).slice(2);
/** @type {Map<string, Followed>} */
const followed = new Map();
/** @type {Set<(connected: boolean) => void>} */
const listeners = new Set();
let count = 0;
let due = false;
let looks = false;
/** @type {(topics: [string, Topic][], look: boolean) => void} */
let send;

/**
 * Follow a topic of the server while the page is seen; what came before is not told again.
 * @param {Topic} topic
 * @param {(data: any, position: string) => void} tell takes each event
 * @param {{hidden?: () => boolean}} [options] hidden: whether it is followed while nobody sees the page, too
 * @returns {{close: () => void}}
 */
export function follow(topic, tell, {hidden = () => false} = {}) {
  const label = `${tab}.${count += 1}`;
  followed.set(label, {topic: {...topic}, tell, hidden});
  soon();
  return {close() {
    if (followed.delete(label)) soon();
  }};
}

/**
 * Follow a topic while the page is seen and an element has room on it: that of a tab which may be behind another.
 * @param {HTMLElement} element
 * @param {Topic} topic
 * @param {(data: any, position: string) => void} tell
 * @returns {{close: () => void}}
 */
export function followWhileShown(element, topic, tell) {
  /** @type {{close: () => void} | null} */
  let open = null;
  let after = topic.after ?? "";
  const close = () => {
    open?.close();
    open = null;
  };
  const watch = new ResizeObserver(() => {
    if (element.offsetParent === null) close();
    else open ??= follow({...topic, after}, (data, position) => {
      after = position || after;
      tell(data, position);
    });
  });
  watch.observe(element);
  return {close() {
    watch.disconnect();
    close();
  }};
}

/** @param {(connected: boolean) => void} listener is told when the connection to the server is lost, and when it is there */
export function onConnection(listener) {
  listeners.add(listener);
}

/** What is followed has changed: say so, once for all changes of this moment. */
export function soon() {
  if (due) return;
  due = true;
  queueMicrotask(say);
}

function say() {
  due = false;
  const seen = [...followed].filter(([, {hidden}]) => !document.hidden || hidden());
  send(seen.map(([label, {topic}]) => [label, topic]), looks);
  looks = false;
}

/** @param {string} label @param {string} data @param {string} position */
function deliver(label, data, position) {
  const one = followed.get(label);
  if (!one || (document.hidden && !one.hidden())) return; // it is told again when the page is seen
  if (position) one.topic.after = position;
  one.tell(JSON.parse(data), position);
}

/** @param {"open" | "lost" | "out"} state */
function report(state) {
  if (state === "out") location.reload(); // the login is over: the gate shows its page
  else for (const listener of listeners) listener(state === "open");
}

function alone() {
  const connection = new EventConnection(new URL("../events", STATIC).href, language, deliver, report);
  send = (topics, look) => {
    connection.follow(topics);
    if (look) connection.look();
  };
}

function shared() {
  const url = new URL("event_worker.js", STATIC);
  url.search = String(new URLSearchParams({language, for: /** @type {any} */ (window).TEXTLOOM.stream ?? ""}));
  const worker = new SharedWorker(url, {type: "module"});
  worker.port.onmessage = ({data: message}) => {
    if (message.state) report(message.state);
    else deliver(message.label, message.data, message.position);
  };
  worker.onerror = () => { // it cannot be loaded here
    alone();
    say();
  };
  send = (topics, look) => worker.port.postMessage({topics, look});
}

try {
  shared();
} catch { // no shared workers, or not in this frame
  alone();
}

document.addEventListener("visibilitychange", () => {
  looks = !document.hidden;
  soon();
});
window.addEventListener("online", () => {
  looks = true;
  soon();
});
window.addEventListener("pagehide", () => send([], false));
window.addEventListener("pageshow", ({persisted}) => persisted && soon());
setInterval(() => { if (!document.hidden || [...followed.values()].some(({hidden}) => hidden())) soon(); }, ALIVE);
