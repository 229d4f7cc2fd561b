// What answers and how: the model, the preset and the settings of the chat, above the conversation.

import {attempt, get, post, remove} from "./api.js";
import {CharacterPick} from "./characters.js";
import {h, icon, iconButton, showDialog, showMenu} from "./dom.js";
import {showMap} from "./map.js";
import {showMarks} from "./marks.js";
import {say} from "./undo.js";
import {bytes, t} from "./words.js";

export class TopBar {
  // controller: {sidebar, current, settings, host, settingsChanged(values), pulse()}
  constructor(controller) {
    this.controller = controller;
    this.menuButton = iconButton("sidebar", t("sidebar.show"), () => controller.sidebar.show(!controller.sidebar.visible));
    this.modelName = h("span", {class: "tl-pick-name"}, "…");
    this.model = h("button", {type: "button", class: "tl-pick tl-model", "aria-haspopup": "menu", "aria-expanded": "false",
      onclick: () => this.chooseModel()}, h("span", {class: "tl-dot"}), this.modelName, icon("down"));
    this.presetName = h("span", {class: "tl-pick-name"}, "…");
    this.preset = h("button", {type: "button", class: "tl-pick tl-preset", "aria-haspopup": "menu", "aria-expanded": "false",
      "aria-label": t("preset"), title: t("preset"), onclick: () => this.choosePreset()}, icon("sliders"), this.presetName, icon("down"));
    this.character = new CharacterPick(controller);
    this.more = iconButton("more", t("chat.view"), () => this.openMore(), {"aria-haspopup": "menu", "aria-expanded": "false"});
    this.settings = iconButton("gear", t("chat.settings"), () => this.openSettings());
    this.fresh = iconButton("plus", t("chat.new"), () => controller.fresh(), {class: "tl-top-new"});
    this.element = h("header", {class: "tl-top"}, this.menuButton, this.model, this.preset, this.character.element, h("span", {class: "tl-space"}), this.more, this.settings, this.fresh);
  }

  draw(pulse) {
    const {engine} = pulse;
    this.engine = engine;
    this.presetNow = pulse.preset;
    const names = {
      ready: engine.name,
      loading: t("model.loading", {name: engine.name, seconds: Math.round(engine.seconds)}),
      asleep: t("model.asleep", {name: engine.name}),
      empty: t("model.none"),
    };
    this.modelName.textContent = names[engine.state];
    this.model.dataset.state = engine.state;
    this.model.title = engine.state === "loading" ? engine.progress : engine.error ?? t("model.choose");
    this.model.setAttribute("aria-label", `${t("model")}: ${names[engine.state]}`);
    this.presetName.textContent = pulse.preset ?? t("preset.own");
  }

  // What the conversation can be looked at by.
  openMore() {
    const {controller} = this;
    const on = Boolean(controller.seen.tokens);
    showMenu(this.more, [
      {label: t("tokens"), icon: "heat", checked: on, run: () => controller.switchTokens()},
      {label: t("prompt"), icon: "eye", run: () => controller.showDraftPrompt()},
      {label: t("map"), icon: "map", disabled: !controller.current, run: () => showMap(controller)},
      {label: t("marks"), icon: "star", run: () => showMarks(controller.host)},
      null,
      {label: t("keys.title"), icon: "keyboard", run: () => controller.showKeys()},
    ]);
  }

  async chooseModel() {
    const menus = await attempt(() => get("/menus"));
    if (!menus) return;
    const items = menus.models.map((model) => ({
      label: model.name,
      note: [model.quantization, model.size ? bytes(model.size) : ""].filter(Boolean).join(" · "),
      checked: this.engine?.state === "ready" && model.name === this.engine.name,
      disabled: Boolean(model.problem) || !menus.admin,
      why: model.problem ?? (menus.admin ? undefined : t("model.admin")),
      run: () => this.load(model.name),
    }));
    if (!items.length) items.push({label: t("model.get"), disabled: true, run: () => {}});
    if (this.engine?.state === "ready" && menus.admin) {
      items.push(null, {label: t("model.unload"), icon: "close", run: () => this.unload()});
    }
    items.push({label: t("model.more"), icon: "chip", run: () => this.controller.openTab("models")});
    showMenu(this.model, items, {title: t("model"), wide: true});
  }

  async load(name) {
    await attempt(() => post("/model", {name}));
    await this.controller.pulse();
  }

  async unload() {
    await attempt(() => remove("/model"));
    await this.controller.pulse();
  }

  async choosePreset() {
    const menus = await attempt(() => get("/menus"));
    if (!menus) return;
    const items = menus.presets.map((name) => ({
      label: name,
      checked: name === this.presetNow,
      run: async () => {
        say(await attempt(() => post("/preset", {name})), () => this.controller.pulse());
        await this.controller.pulse();
      },
    }));
    items.push(null, {label: t("preset.more"), icon: "sliders", run: () => this.controller.openTab("parameters")});
    showMenu(this.preset, items, {title: t("preset")});
  }

  async openSettings() {
    const menus = await attempt(() => get("/menus"));
    const people = await attempt(() => get("/characters"));
    if (!menus || !people) return;
    const {settings} = this.controller;
    const own = this.engine?.template === "model" ? t("template.own") :
      this.engine?.template ? t("template.fitting", {name: this.engine.template}) : t("template.missing");
    const adapters = this.engine?.adapters ?? [];
    /** @type {object[]} */
    const fields = [
      {name: "mode", words: t("mode"), kind: "choice", value: settings.mode ?? "instruct", help: t("mode.help"),
        choices: ["instruct", "chat", "chat-instruct"].map((name) => [name, t(`mode.${name}`)])},
      {name: "character", words: t("character"), kind: "choice", value: settings.character ?? "",
        choices: [["", t("character.nobody")], ...people.characters.map(({id, name}) => [id, name])]},
      {name: "command", words: t("command"), help: t("command.help"), kind: "lines", value: settings.command},
      {name: "system_prompt", words: t("system"), help: t("system.help"), kind: "lines", value: settings.system_prompt},
      {name: "reply_start", words: t("reply.start"), help: t("reply.start.help"), value: settings.reply_start},
      {name: "template", words: t("template"), help: t("template.help"), kind: "choice", value: settings.template,
        choices: [["", own], ...menus.templates.map((name) => [name, name])]},
    ];
    if (adapters.length) {
      fields.push(
        {name: "adapter", words: t("adapter"), kind: "choice", value: settings.adapter,
          choices: [["", t("adapter.none")], ...adapters.map((name) => [name, name])]},
        {name: "adapter_strength", words: t("adapter.strength"), kind: "number", value: settings.adapter_strength},
      );
    }
    showDialog(this.controller.host, t("chat.settings"), fields, t("save"), 
      (_, changed) => this.controller.settingsChanged(changed)); // another tab may have changed the rest meanwhile
  }
}
