// The Models tab's list: what is on disk, what is loaded, and downloads under way.

import {attempt, get, post, remove} from "./api.js";
import {h, iconButton, toast} from "./dom.js";
import {bytes, count, t} from "./words.js";

const DAY = 86400;

function loadWords(load) {
  const cache = {bytes: bytes(load.cache_bytes), limit: bytes(load.cache_limit ?? 0), tokens: count(load.cached_tokens)};
  return [
    t("load.replies", {running: count(load.running), waiting: count(load.waiting)}),
    load.cache_limit ? t("load.cache", cache) : "",
  ].join(" ").trim();
}

export class Models {
  constructor(host, pick) {
    this.host = host;
    this.pick = pick;
    this.chosen = null;
    this.status = h("div", {class: "tl-engine", role: "status"});
    this.list = h("ul", {class: "tl-cards", "aria-label": t("tab.models")});
    this.downloads = h("ul", {class: "tl-downloads", "aria-label": t("downloads")});
    const name = h("input", {type: "text", placeholder: "HuggingFaceTB/SmolLM2-360M-Instruct"});
    const quant = h("input", {type: "text", placeholder: "Q4_K_M"});
    const form = h("form", {class: "tl-download"},
      h("label", {class: "tl-field"}, h("span", {}, t("download.name")), name, h("small", {}, t("download.name.help"))),
      h("label", {class: "tl-field"}, h("span", {}, t("download.quant")), quant, h("small", {}, t("download.quant.help"))),
      h("button", {type: "submit", class: "tl-strong"}, t("download")));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (!name.value.trim()) return name.focus();
      if (await attempt(() => post("/downloads", {name: name.value, quant: quant.value})) !== undefined) name.value = "";
      this.refresh();
    });
    host.replaceChildren(this.status, this.list, h("h2", {}, t("downloads")), this.downloads, form);
    const beat = async () => {
      if (host.isConnected && host.offsetParent && !document.hidden) await this.refresh();
      const busy = this.view?.engine.state === "loading" || this.view?.downloads.some((job) => ["asking", "running"].includes(job.state));
      setTimeout(beat, busy ? 500 : 2000);
    };
    beat();
  }

  async refresh() {
    let view;
    try {
      view = await get("/models");
    } catch {
      return; // the next beat tries again
    }
    const was = this.view?.engine;
    this.view = view;
    if (was?.state === "loading" && view.engine.state === "empty" && view.engine.error) toast(view.engine.error, {wrong: true});
    this.drawStatus(view.engine, view.load);
    const key = JSON.stringify([view.models, view.engine.name, view.engine.state, this.chosen]);
    if (key !== this.key) this.drawList(view);
    this.key = key;
    this.drawDownloads(view.downloads);
    if (!this.chosen && view.models.length) this.choose(view.engine.state === "ready" ? this.nameLoaded() : view.models[0].name);
  }

  nameLoaded() {
    const {engine, models} = this.view;
    return models.find((model) => model.name === engine.name)?.name ?? models[0].name;
  }

  choose(name) {
    this.chosen = name;
    this.pick(name);
    this.refresh();
  }

  drawStatus(engine, load) {
    const said = {
      ready: t("engine.ready", {name: engine.name, context: count(engine.context ?? 0)}),
      loading: t("engine.loading", {name: engine.name, progress: engine.progress, seconds: Math.round(engine.seconds)}),
      empty: engine.error ?? t("engine.empty"),
    }[engine.state];
    const words = load && engine.state === "ready" ? `${said} ${loadWords(load)}` : said;
    if (this.status.dataset.words === words) return;
    this.status.dataset.words = words;
    this.status.dataset.state = engine.error && engine.state === "empty" ? "wrong" : engine.state;
    this.status.replaceChildren(h("span", {class: "tl-dot"}), h("span", {}, words));
  }

  drawList({models, engine}) {
    const focused = document.activeElement?.closest?.(".tl-card")?.dataset.name;
    this.list.replaceChildren(...models.map((model) => {
      const loaded = engine.state !== "empty" && model.name === engine.name;
      const facts = [
        model.size ? bytes(model.size) : null,
        model.quantization,
        model.context ? t("model.context", {n: count(model.context)}) : null,
        model.architecture,
        model.loader,
      ].filter(Boolean);
      return h("li", {},
        h("button", {type: "button", class: "tl-card", "data-name": model.name, "aria-pressed": String(model.name === this.chosen),
          onclick: () => this.choose(model.name)},
          h("span", {class: "tl-card-name"}, model.name, loaded ? h("span", {class: "tl-badge"}, t(`engine.badge.${engine.state}`)) : null),
          h("span", {class: "tl-card-facts"}, facts.map((fact) => h("span", {}, fact))),
          model.problem ? h("span", {class: "tl-wrong-text"}, model.problem) : null));
    }));
    if (!models.length) this.list.append(h("li", {class: "tl-nothing"}, t("models.none")));
    if (focused) this.list.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  }

  drawDownloads(jobs) {
    this.downloads.replaceChildren(...jobs.map((job) => {
      const running = ["asking", "running"].includes(job.state);
      const share = job.total ? job.done / job.total : 0;
      const words = {
        asking: t("download.asking"),
        running: t("download.running", {done: bytes(job.done), all: bytes(job.total), speed: bytes(job.speed), left: time(job.left)}),
        done: t("download.done"),
        failed: job.error,
        cancelled: t("download.cancelled"),
      }[job.state];
      return h("li", {class: "tl-job", "data-state": job.state},
        h("div", {class: "tl-job-head"}, h("strong", {}, job.name),
          running ? iconButton("close", t("download.cancel", {name: job.name}), async () => {
            await attempt(() => remove(`/downloads/${job.id}`));
            this.refresh();
          }) : null),
        running ? h("progress", {max: 1, value: job.state === "asking" ? undefined : share, "aria-label": job.name}) : null,
        h("span", {class: job.state === "failed" ? "tl-wrong-text" : "tl-card-facts"}, words));
    }));
  }
}

function time(seconds) {
  if (seconds === null || seconds > DAY) return "…";
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

export function start(element, pick) {
  new Models(element.querySelector(".tl-models"), pick);
}
