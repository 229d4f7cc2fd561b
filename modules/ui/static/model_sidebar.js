// The sidebar of the Models tab: adapters, downloads, remote engines. The list of models asks the server; this listens.

import {attempt, post, remove} from "./api.js";
import {onSubmit} from "./busy.js";
import {h, iconButton, keyed, openChat, toast} from "./dom.js";
import {say} from "./undo.js";
import {bytes, t} from "./words.js";

const DAY = 86400;
const changed = () => window.dispatchEvent(new Event("tl-models-changed"));

class ModelSidebar {
  constructor(host) {
    this.strengths = new Map();
    this.busy = new Set();
    this.adapters = h("ul", {class: "tl-cards", "aria-label": t("adapters")});
    this.downloads = h("ul", {class: "tl-downloads", "aria-label": t("downloads")});
    this.engines = h("ul", {class: "tl-cards", "aria-label": t("engines")});
    host.replaceChildren(
      h("h2", {}, t("adapters")), this.adapters,
      h("h2", {}, t("downloads")), this.downloads, this.downloadForm(),
      h("h2", {}, t("engines")), this.engines, this.engineForm());
    window.addEventListener("tl-models", (/** @type {CustomEvent} */ {detail}) => this.draw(detail));
    changed();
  }

  draw(view) {
    const {adapters, admin, downloads, engine, engines} = view;
    keyed(this.adapters, [adapters, engine.takes_adapters, engine.name, engine.state, admin, [...this.busy]], () => this.drawAdapters(view));
    keyed(this.downloads, downloads, () => this.drawDownloads(downloads));
    keyed(this.engines, engines, () => this.drawEngines(view));
  }

  // --- adapters

  drawAdapters(view) {
    const {adapters, engine, admin} = view;
    const why = engine.state !== "ready" ? t("adapters.no_model") : engine.takes_adapters ? null : t("adapters.refused", {name: engine.name});
    this.adapters.replaceChildren(...adapters.map((adapter) => {
      const facts = [adapter.base ? t("adapter.base", {name: adapter.base}) : null, adapter.rank ? t("adapter.rank", {n: adapter.rank}) : null,
        adapter.kind, bytes(adapter.size)].filter(Boolean);
      const busy = this.busy.has(adapter.name);
      return h("li", {class: "tl-adapter", "data-name": adapter.name, "data-loaded": String(adapter.loaded)},
        h("div", {class: "tl-job-head"},
          h("strong", {}, adapter.name, adapter.loaded ? h("span", {class: "tl-badge"}, t("engine.badge.ready")) : null),
          admin && !adapter.problem ? h("button", {type: "button", class: "tl-quiet", title: why, disabled: busy || Boolean(why),
            onclick: () => this.change(adapter)}, t(adapter.loaded ? "adapter.unload" : "adapter.load")) : null),
        h("span", {class: "tl-card-facts"}, facts.map((fact) => h("span", {}, fact))),
        adapter.problem ? h("span", {class: "tl-wrong-text"}, adapter.problem) : null,
        adapter.loaded ? this.strength(adapter.name) : null);
    }));
    if (!adapters.length) this.adapters.append(h("li", {class: "tl-nothing"}, t("adapters.none")));
    else if (why) this.adapters.append(h("li", {class: "tl-quiet-text"}, why));
  }

  strength(name) {
    const shown = h("output", {}, (this.strengths.get(name) ?? 1).toFixed(2));
    const slider = h("input", {type: "range", min: "0", max: "2", step: "0.05", "aria-label": t("adapter.strength")});
    slider.value = this.strengths.get(name) ?? 1;
    slider.addEventListener("input", () => {
      this.strengths.set(name, Number(slider.value));
      shown.value = Number(slider.value).toFixed(2);
    });
    const begin = async () => {
      const made = await attempt(() => post("/adapters/chat", {name, strength: this.strengths.get(name) ?? 1}));
      if (made) openChat(made.chat);
    };
    return h("div", {class: "tl-strength"}, h("span", {}, t("adapter.strength.short")), slider, shown,
      h("button", {type: "button", class: "tl-quiet", onclick: begin}, t("adapter.chat")));
  }

  async change({name, loaded}) {
    this.busy.add(name);
    const address = `/adapters/${encodeURIComponent(name)}`;
    const done = await attempt(() => (loaded ? remove(address) : post("/adapters", {name})));
    this.busy.delete(name);
    if (done !== undefined) toast(t(loaded ? "adapter.unloaded" : "adapter.loaded", {name}), {seconds: 3});
    changed();
  }

  // --- downloads

  drawDownloads(jobs) {
    this.downloads.replaceChildren(...jobs.map((job) => {
      const running = ["asking", "running"].includes(job.state);
      const words = {
        asking: t("download.asking"),
        running: job.total
          ? t("download.running", {done: bytes(job.done), all: bytes(job.total), speed: bytes(job.speed), left: time(job.left)})
          : t("download.under_way"),
        done: t("download.done"),
        failed: job.error,
        cancelled: t("download.cancelled"),
      }[job.state];
      return h("li", {class: "tl-job", "data-state": job.state},
        h("div", {class: "tl-job-head"}, h("strong", {}, job.name),
          running ? iconButton("close", t("download.cancel", {name: job.name}), async () => {
            await attempt(() => remove(`/downloads/${job.id}`));
            changed();
          }) : null),
        running ? h("progress", {max: 1, value: job.total ? job.done / job.total : undefined, "aria-label": job.name}) : null,
        h("span", {class: job.state === "failed" ? "tl-wrong-text" : "tl-card-facts"}, words),
        running ? job.files.map(([path, done, size]) =>
          h("span", {class: "tl-card-facts"}, h("span", {}, path), h("span", {}, size === null ? bytes(done) : `${bytes(done)} / ${bytes(size)}`))) : null);
    }));
  }

  downloadForm() {
    const [name, quant] = [
      field(t("download.name"), t("download.name.help"), {placeholder: "HuggingFaceTB/SmolLM2-360M-Instruct", required: true}),
      field(t("download.quant"), t("download.quant.help"), {placeholder: "Q4_K_M"}),
    ];
    return form(t("download"), [name, quant], async () => {
      if (await attempt(() => post("/downloads", {name: name.input.value, quant: quant.input.value})) !== undefined) name.input.value = "";
    });
  }

  // --- remote engines

  drawEngines({engines, admin}) {
    this.engines.replaceChildren(...engines.map(({name, address}) => h("li", {class: "tl-job"},
      h("div", {class: "tl-job-head"}, h("strong", {}, name),
        admin ? iconButton("trash", t("engine.remove", {name}), async () => {
          say(await attempt(() => remove(`/engines/${encodeURIComponent(name)}`)));
        }) : null),
      address ? h("span", {class: "tl-card-facts"}, address) : null)));
    if (!engines.length) this.engines.append(h("li", {class: "tl-nothing"}, t("engines.none")));
  }

  engineForm() {
    const fields = {
      name: field(t("engine.name"), "", {placeholder: "far", required: true}),
      base_url: field(t("engine.address"), t("engine.address.help"), {placeholder: "http://10.0.0.5:8000/v1", required: true}),
      model: field(t("engine.model"), t("engine.model.help")),
      api_key: field(t("engine.key"), t("engine.key.help"), {type: "password", autocomplete: "off"}),
      context_length: field(t("engine.context"), t("engine.context.help"), {type: "number", min: "0", step: "1"}),
    };
    const built = form(t("engine.add"), Object.values(fields), async () => {
      const body = Object.fromEntries(Object.entries(fields).map(([key, {input}]) => [key, input.value]));
      body.context_length = Number(body.context_length) || 0;
      if (await attempt(() => post("/engines", body)) === undefined) return;
      toast(t("engine.added", {name: body.name}), {seconds: 4});
      for (const {input} of Object.values(fields)) input.value = "";
    });
    return h("details", {class: "tl-fold"}, h("summary", {}, t("engine.add.title")), built);
  }
}

function field(words, help, properties = {}) {
  const input = h("input", {type: "text", ...properties});
  return {input, row: h("label", {class: "tl-field"}, h("span", {}, words), input, help ? h("small", {}, help) : null)};
}

function form(label, fields, send) {
  const built = h("form", {class: "tl-download"}, fields.map(({row}) => row), h("button", {type: "submit", class: "tl-strong"}, label));
  onSubmit(built, async () => {
    await send();
    changed();
  });
  return built;
}

function time(seconds) {
  if (seconds === null || seconds > DAY) return "…";
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

export function start(element) {
  new ModelSidebar(element.querySelector(".tl-beside-models"));
}
