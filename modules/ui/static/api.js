// Calls to the server. Addresses are relative, so that the page works under any path.

import {toast} from "./dom.js";
import {t} from "./words.js";

const BASE = new URL("chats", document.baseURI).href;

export const address = (path) => `${BASE}${path}`;

// A style that some tabs need. Like the page's own (bootstrap.js) it stands behind Gradio's, wherever those are.
export function addStyle(name) {
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  fetch(address(`/static/${name}`)).then((reply) => reply.text()).then((text) => sheet.replaceSync(text));
}

export class Refused extends Error {
  status = 0; // of the answer; 0 where there was none
}

async function call(method, path, body) {
  return (await fetched(method, path, body)).json();
}

async function fetched(method, path, body) {
  const file = body instanceof Blob;
  let reply;
  try {
    reply = await fetch(address(path), {
      method,
      headers: body === undefined ? {} : {"Content-Type": file ? "application/octet-stream" : "application/json"},
      body: body === undefined || file ? body : JSON.stringify(body),
    });
  } catch {
    throw new Refused(t("unreachable"));
  }
  if (reply.ok) return reply;
  if (reply.status === 401) location.reload(); // the login is over: the gate shows its page
  const answer = await reply.json().catch(() => null);
  const error = new Refused(answer?.error?.message ?? t("broken", {status: reply.status}));
  error.status = reply.status;
  throw error;
}

// The text of an answer, piece by piece as it comes.
export async function* streamed(path, body) {
  const reader = (await fetched("POST", path, body)).body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body ?? {});
export const put = (path, body) => call("PUT", path, body);
export const send = (path, file) => call("POST", path, file);
export const patch = (path, body) => call("PATCH", path, body);
export const remove = (path) => call("DELETE", path);

// Run `work`; what the server refuses is shown as a message that passes. Returns undefined then.
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Refused)) console.error(error);
    toast(error instanceof Refused ? error.message : t("broken", {status: error.message}), {wrong: true});
    return undefined;
  }
}
