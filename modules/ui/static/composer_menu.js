// What can be done with a draft beyond sending it: answered in columns, put in as it is, or written by the model.

import {address, attempt, post, remove, Refused, get} from "./api.js";
import {chooseColumns} from "./compare.js";
import {h, iconButton, showDialog, showMenu, toast} from "./dom.js";
import {t} from "./words.js";

export class ComposerMenu {
  // chat: the chat view of main.js
  constructor(chat) {
    this.chat = chat;
    this.button = iconButton("plus", t("composer.more"), () => this.open(), {"aria-haspopup": "menu", "aria-expanded": "false", class: "tl-composer-more"});
    this.start = h("span", {class: "tl-start-words"});
    this.chip = h("div", {class: "tl-start", hidden: true}, this.start,
      iconButton("edit", t("start.edit"), () => this.editStart()), iconButton("close", t("start.clear"), () => this.setStart("")));
  }

  get text() {
    return this.chat.composer.text.value;
  }

  open() {
    const {chat} = this;
    const {files} = chat.composer.attached;
    const draft = Boolean(this.text.trim());
    const talk = Boolean(chat.leaf);
    showMenu(this.button, [
      {label: t("compare.answers"), icon: "columns", disabled: !draft && !files.length && !talk, run: () => this.compare()},
      {label: t("impersonate"), icon: "edit", disabled: !talk, run: () => this.impersonate()},
      {label: t("start"), icon: "onward", run: () => this.editStart()},
      null,
      {label: t("dummy.message"), icon: "plus", disabled: !draft && !files.length, run: () => this.add("user")},
      {label: t("dummy.reply"), icon: "plus", disabled: !draft, run: () => this.add("assistant")},
      null,
      {label: t("last.remove"), icon: "trash", disabled: !talk, run: () => this.removeLast()},
    ]);
  }

  async compare() {
    const content = this.text;
    const {files} = this.chat.composer.attached;
    if (await chooseColumns(this.chat, {content, files, after: this.chat.leaf}) && (content.trim() || files.length)) this.chat.composer.empty();
  }

  // A message that nobody answers.
  async add(role) {
    const {chat} = this;
    const settings = chat.current ? null : chat.settings;
    const files = role === "user" ? chat.composer.attached.files : [];
    const answer = await attempt(() => post("/add", {chat: chat.current, after: chat.leaf, content: this.text, files, role, settings}));
    if (!answer) return;
    chat.composer.empty();
    await chat.began(answer.chat);
  }

  // The last message of the user and what followed go, and its words come back into the box.
  async removeLast() {
    const {chat} = this;
    const last = [...chat.views.values()].reverse().find((view) => view.view.role === "user");
    const id = last?.view.id ?? chat.leaf;
    if (!id) return;
    const answer = await attempt(() => get(`/messages/${id}`));
    if (!answer || !(await chat.act(() => remove(`/messages/${id}`)))) return;
    const {attached} = chat.composer;
    const put = last && chat.composer.blank;
    if (put) {
      attached.putBack({pictures: (last.view.extra?.pictures ?? []).filter(Number.isInteger), files: answer.files});
      chat.composer.fill(answer.content);
    }
    toast(t("message.deleted"), {action: {label: t("undo"), run: async () => {
      await chat.act(() => post(`/messages/${id}/restore`));
      if (!put || this.text !== answer.content) return;
      attached.putBack({pictures: [], files: []});
      chat.composer.fill("");
    }}});
  }

  // --- how every reply begins

  editStart() {
    showDialog(this.chat.host, t("start"), [{name: "start", words: t("reply.start"), help: t("reply.start.help"), value: this.chat.settings.reply_start ?? "", kind: "lines"}],
      t("save"), ({start}) => this.setStart(start));
  }

  async setStart(text) {
    await this.chat.settingsChanged({reply_start: text});
    this.draw();
  }

  draw() {
    const start = this.chat.settings.reply_start ?? "";
    this.chip.hidden = !start;
    this.start.textContent = start ? t("start.is", {text: start.length > 60 ? `${start.slice(0, 60)}…` : start}) : "";
  }

  // --- the model writes the user's part, into the box

  async impersonate() {
    const {chat} = this;
    const {composer} = chat;
    const stopper = new AbortController();
    const begun = composer.text.value;
    composer.borrow(() => stopper.abort());
    try {
      const reply = await fetch(address("/impersonate"), {
        method: "POST",
        headers: {"Content-Type": "application/json"},
        body: JSON.stringify({...chat.draft(), content: begun}),
        signal: stopper.signal,
      });
      if (!reply.ok) throw new Refused((await reply.json().catch(() => null))?.error?.message ?? t("broken", {status: reply.status}));
      for await (const line of lines(reply.body)) {
        if (line.error) throw new Refused(line.error);
        if (line.place) composer.say(t("status.place", {n: line.place}));
        if (line.text) composer.append(line.text);
      }
    } catch (error) {
      if (error.name !== "AbortError") toast(error instanceof Refused ? error.message : t("unreachable"), {wrong: true});
    } finally {
      composer.giveBack();
    }
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}
