// The Models tab's list: what is on disk, and what is loaded. What stands beside it listens to the same news.

import {attempt, get, post, remove} from "./api.js";
import {h, iconButton, keyed} from "./dom.js";
import {followWhileShown} from "./events.js";
import {about, bytes, count, loadingWords, t} from "./words.js";

function loadWords(load) {
  return [
    t("load.replies", {running: count(load.running), waiting: count(load.waiting)}),
    load.cached_tokens ? t("load.cached", {tokens: count(load.cached_tokens)}) : "",
  ].join(" ").trim();
}

export class Models {
  constructor(host, pick) {
    this.host = host;
    this.pick = pick;
    this.chosen = null;
    this.status = h("div", {class: "tl-engine", role: "status"});
    this.bar = h("progress", {max: 1, "aria-label": t("model.progress")});
    this.log = h("details", {class: "tl-load-log"}, h("summary", {}, t("engine.log")), h("pre", {class: "tl-log"}));
    this.list = h("ul", {class: "tl-cards", "aria-label": t("tab.models")});
    host.replaceChildren(h("div", {class: "tl-engine-box"}, this.status, this.bar, this.log), this.list);
    for (const news of ["tl-models-changed", "tl-changed"]) window.addEventListener(news, () => this.refresh());
    window.addEventListener("tl-restored", (/** @type {CustomEvent} */ {detail}) => {
      if (this.chosen && ["loading", "defaults"].includes(detail)) this.pick(this.chosen); // how it is loaded is another
    });
    followWhileShown(host, {kind: "models"}, (view) => this.draw(view));
  }

  // Ask now, where something was changed here.
  async refresh() {
    const view = await get("/models").catch(() => null);
    if (view) this.draw(view);
  }

  draw(view) {
    const was = this.view?.engine;
    this.view = view;
    this.drawStatus(view.engine, view.load);
    if (was && was.loads !== view.engine.loads) this.status.scrollIntoView({block: "nearest", behavior: "smooth"}); // on a phone it is above
    keyed(this.list, [view.models, view.engine.name, view.engine.state, view.loaded, this.chosen], () => this.drawList(view));
    window.dispatchEvent(new CustomEvent("tl-models", {detail: view}));
    if (this.chosen && view.models.length && !view.models.some((model) => model.name === this.chosen)) this.chosen = null; // it is gone
    if (!this.chosen && view.models.length) this.choose(view.engine.state === "ready" ? this.nameLoaded() : (view.models.find((model) => !model.problem) ?? view.models[0]).name);
  }

  nameLoaded() {
    const {engine, models} = this.view;
    return models.find((model) => model.name === engine.name)?.name ?? models[0].name;
  }

  // The model that is chosen already stays as it is, with what somebody wrote into its settings.
  choose(name) {
    if (name === this.chosen) return;
    this.chosen = name;
    for (const card of this.list.querySelectorAll(".tl-card")) card.ariaPressed = String(card.dataset.name === name);
    this.pick(name);
    this.draw(this.view);
  }

  drawStatus(engine, load) {
    const said = {
      ready: t("engine.ready", {name: engine.name, context: count(engine.context ?? 0)}),
      loading: `${loadingWords(engine)} · ${Math.round(engine.seconds)} s`,
      asleep: engine.error ? t("engine.gone", {name: engine.name, error: engine.error}) : t("engine.asleep", {name: engine.name}),
      empty: engine.error ?? t("engine.empty"),
    }[engine.state];
    const words = load && engine.state === "ready" ? `${said} ${loadWords(load)}` : said;
    const share = engine.state === "loading" ? /(\d+) ?%/.exec(engine.progress)?.[1] : null;
    this.bar.hidden = engine.state !== "loading";
    if (share) this.bar.value = Number(share) / 100;
    else this.bar.removeAttribute("value");
    this.drawLog(engine);
    keyed(this.status, [words, engine.state, engine.again, this.view.admin], () => this.drawEngine(engine, words));
  }

  drawEngine(engine, words) {
    this.status.dataset.state = engine.error && ["empty", "asleep"].includes(engine.state) ? "wrong" : engine.state;
    const act = (label, name, action) => iconButton(name, label, async () => {
      await attempt(action);
      this.refresh();
    });
    this.status.replaceChildren(h("span", {class: "tl-dot"}), h("span", {class: "tl-engine-words"}, words),
      this.view.admin && engine.again && engine.state !== "loading" ? act(t("model.again"), "again", () => post("/model/again")) : "",
      this.view.admin && ["ready", "asleep"].includes(engine.state) ? act(t("model.unload"), "close", () => remove("/model")) : "");
  }

  // What a load says is of interest while it goes on, and where it failed: an engine of its own (vLLM) says much.
  drawLog(engine) {
    this.log.hidden = engine.log.length < 2 || ["ready", "asleep"].includes(engine.state);
    const text = engine.log.join("\n");
    const pre = this.log.lastChild;
    if (pre.textContent === text) return;
    pre.textContent = text;
    pre.scrollTop = pre.scrollHeight;
  }

  // What its load did, in the words that the estimate has.
  loadedFacts({bits, parallel, speed, taken, notes}) {
    const facts = [
      bits ? t("loaded.bits", {n: bits}) : null,
      parallel > 1 ? t("loaded.many", {n: count(parallel)}) : t("loaded.one"),
      speed ? t("loaded.speed", {n: speed.toFixed(1)}) : null,
    ].filter(Boolean);
    return [h("span", {class: "tl-card-facts tl-card-loaded"}, facts.map((fact) => h("span", {}, fact))),
      ...[taken, ...notes].filter(Boolean).map((words) => h("span", {class: "tl-card-note"}, words))];
  }

  drawList({models, engine, loaded: now}) {
    const focused = document.activeElement?.closest?.(".tl-card")?.dataset.name;
    this.list.replaceChildren(...models.map((model) => {
      const loaded = engine.state !== "empty" && model.name === engine.name;
      const facts = [
        model.size ? bytes(model.size) : null,
        model.parameters ? t("model.parameters", {n: about(model.parameters)}) : null,
        model.quantization ?? model.dtype,
        model.context ? t("model.context", {n: count(model.context)}) : null,
        model.architecture,
        model.vision ? t("model.sees") : null,
        model.code ? t("model.code") : null,
        model.template || model.problem ? null : t("model.no_template"),
        model.loader && !model.problem ? t("model.loader", {name: model.loader}) : null,
      ].filter(Boolean);
      return h("li", {},
        h("button", {type: "button", class: "tl-card", "data-name": model.name, "aria-pressed": String(model.name === this.chosen),
          onclick: () => this.choose(model.name)},
          h("span", {class: "tl-card-name"}, model.name, loaded ? h("span", {class: "tl-badge"}, t(`engine.badge.${engine.state}`)) : null),
          h("span", {class: "tl-card-facts"}, facts.map((fact) => h("span", {}, fact))),
          now && model.name === now.name ? this.loadedFacts(now) : null,
          model.problem ? h("span", {class: "tl-wrong-text"}, model.problem) : null));
    }));
    if (!models.length) this.list.append(this.nothingYet());
    if (focused) this.list.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  }

  nothingYet() {
    const fetch = async () => {
      await attempt(() => post("/starter"));
      this.refresh();
    };
    return h("li", {class: "tl-nothing"}, h("p", {}, t("models.none")),
      this.view.admin ? h("button", {type: "button", class: "tl-strong", onclick: fetch}, t("models.starter")) : null);
  }
}

export function start(element, pick) {
  new Models(element.querySelector(".tl-models"), pick);
}
