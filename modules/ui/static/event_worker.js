// @ts-check
// A shared worker: the event stream of all tabs of a browser. Browsers hold six connections to a host, and tabs are more than that.

import {EventConnection} from "./event_connection.js";

const FORGOTTEN = 60_000; // milliseconds: a tab that is there says so every 20 s

/** @type {Map<MessagePort, {heard: number, topics: [string, import("./event_connection.js").Topic][]}>} */
const tabs = new Map();
let state = "";

const connection = new EventConnection(
  new URL("../events", import.meta.url).href,
  new URL(location.href).searchParams.get("language") ?? "",
  (label, data, position) => {
    for (const [port, {topics}] of tabs) if (topics.some(([known]) => known === label)) port.postMessage({label, data, position});
  },
  (now) => {
    state = now;
    for (const port of tabs.keys()) port.postMessage({state: now});
  },
);

function follow() {
  connection.follow([...tabs.values()].flatMap(({topics}) => topics));
}

/** @param {MessageEvent} event */
function connected(event) {
  const [port] = event.ports;
  // message: all that the tab follows, by labels that no other tab has; and whether to see after the connection
  port.onmessage = ({data: {topics, look}}) => {
    if (!tabs.has(port) && ["open", "lost"].includes(state)) port.postMessage({state});
    tabs.set(port, {heard: Date.now(), topics});
    follow();
    if (look) connection.look();
  };
}

setInterval(() => {
  const before = tabs.size;
  for (const [port, {heard}] of tabs) if (Date.now() - heard > FORGOTTEN) tabs.delete(port);
  if (tabs.size < before) follow();
}, 10_000);

/** @type {any} */ (self).onconnect = connected;
