// What the tools of a message do: asked for by MessageView, done here for one chat view.

import {address, attempt, get, post, remove} from "./api.js";
import {chooseColumns} from "./compare.js";
import {showDifference} from "./diff.js";
import {copyText, showMenu, toast} from "./dom.js";
import {showPrompt} from "./prompt.js";
import {modelReady} from "./waiting.js";
import {t} from "./words.js";

// chat: the chat view of main.js
export function messageActions(chat) {
  const underWay = new Set(); // paths: a key that is pressed twice while a model loads asks once
  const answered = async (path, body = {}) => {
    if (underWay.has(path)) return false;
    underWay.add(path);
    const done = await chat.act(async () => {
      await modelReady();
      return post(path, body);
    }, {follow: true});
    underWay.delete(path);
    return done;
  };
  const actions = {
    async copy(id) {
      const answer = await attempt(() => get(`/messages/${id}`));
      if (answer) copyText(answer.content || answer.files.map(({text}) => text).join("\n"));
    },
    async edit(view) {
      const answer = await attempt(() => get(`/messages/${view.view.id}`));
      if (answer) view.beginEditing(answer.content);
    },
    saveEdit: (id, content, answer) => answer ? answered(`/messages/${id}/edit`, {content, answer})
      : chat.act(() => post(`/messages/${id}/edit`, {content, answer})),
    regenerate: (id) => answered(`/messages/${id}/regenerate`),
    continueReply: (id) => answered(`/messages/${id}/continue`),
    select: (id) => chat.act(() => post(`/messages/${id}/select`)),
    async branch(id) {
      const answer = await attempt(() => post(`/messages/${id}/branch`));
      if (!answer) return;
      await chat.open(answer.id);
      chat.sidebar.refresh();
      toast(t("branched"), {seconds: 4});
    },
    async remove(id) {
      if (!(await chat.act(() => remove(`/messages/${id}`)))) return;
      toast(t("message.deleted"), {action: {label: t("undo"), run: () => chat.act(() => post(`/messages/${id}/restore`))}});
    },

    // --- looked at

    prompt: (id) => showPrompt(chat.host, () => get(`/messages/${id}/prompt`)),
    diff: (view, other = null) => showDifference(chat.host, view, other),

    // --- made again, and elsewhere

    runAgain: (id) => answered(`/messages/${id}/again`),
    async copyProgram(id, kind) {
      const api = address("/../v1").replace("chats/../", "");
      const programs = await attempt(() => get(`/messages/${id}/programs?address=${encodeURIComponent(api)}`));
      if (programs) copyText(programs[kind]);
    },
    compare: (view) => chooseColumns(chat, {content: "", after: view.id}),
    keep: (id) => chat.act(() => post(`/messages/${id}/keep`)),

    // --- marked for training

    async markGood(id, on) {
      if (await chat.act(() => post(`/messages/${id}/good`, {on})) && on) toast(t("marked"), {seconds: 2});
    },
    // Where there are several other versions, ask which.
    prefer(anchor, view) {
      const others = view.versions.filter((id) => id !== view.id);
      const over = new Set(view.extra?.better_than ?? []);
      const set = (id) => chat.act(() => post(`/messages/${view.id}/better`, {rejected: id, preferred: !over.has(id)}));
      if (others.length === 1) return set(others[0]);
      showMenu(anchor, others.map((id) => ({
        label: t("version.number", {n: view.versions.indexOf(id) + 1}), checked: over.has(id), run: () => set(id),
      })), {title: t("mark.better")});
    },
  };
  return actions;
}
