// The Training tab: the list of runs, and the chosen one with its curves, replies and buttons. All of it comes from the server, so
// that a reload loses nothing.

import {addStyle, attempt, get, post, remove} from "./api.js";
import {untilAnswered} from "./busy.js";
import {copyText, forgetDrawn, h, keyed, openChat, showDialog, toast} from "./dom.js";
import {followWhileShown} from "./events.js";
import {Comparison} from "./training_compare.js";
import {say} from "./undo.js";
import {count, t} from "./words.js";

const KINDS = {loss: ["loss", "smoothed", "evaluated"], rate: ["rate"], norm: ["norm"], speed: ["speed"], memory: ["memory"], preferred: ["preferred"]};
const SAVING = 20_000; // milliseconds that a run gets for saving before it can be ended at once
const LINES = {loss: "--tl-faint-line", smoothed: "--tl-accent", evaluated: "--tl-good"};

class Training {
  constructor(host, copied) {
    this.host = host;
    this.copied = copied;
    this.chosen = null;
    this.kind = "loss";
    this.stopping = new Map();
    this.list = h("ul", {class: "tl-cards", "aria-label": t("training.runs")});
    this.detail = h("section", {class: "tl-run", "aria-label": t("training.run"), hidden: true});
    this.head = h("div");
    this.buttons = h("div", {class: "tl-run-buttons"});
    this.plot = h("canvas", {class: "tl-plot", role: "img"});
    this.kinds = h("div", {class: "tl-kinds", role: "group"}, Object.keys(KINDS).map((kind) =>
      h("button", {type: "button", class: "tl-quiet", "data-kind": kind, "aria-pressed": String(kind === this.kind), onclick: () => {
        this.kind = kind;
        for (const button of this.kinds.children) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
        this.drawPlot();
      }}, t(`training.curve.${kind}`))));
    this.legend = h("p", {class: "tl-legend"}, KINDS.loss.map((name) => h("span", {"data-line": name}, t(`training.line.${name}`))));
    this.rest = h("div");
    this.comparison = new Comparison();
    this.detail.append(this.head, this.buttons, this.kinds, this.plot, this.legend, this.comparison.element, this.rest);
    host.replaceChildren(h("h2", {}, t("training.runs")), this.list, this.detail);
    new ResizeObserver(() => this.drawPlot()).observe(this.plot);
    followWhileShown(host, {kind: "training"}, (view) => this.draw(view));
    window.addEventListener("tl-changed", () => host.offsetParent && this.refresh());
  }

  // Ask now, where something was changed here.
  async refresh() {
    const view = await get("/training").catch(() => null);
    if (!view) return;
    this.draw(view);
    const run = this.chosen && await get(`/training/${encodeURIComponent(this.chosen)}`).catch(() => null);
    if (run?.id === this.chosen) this.drawDetail(run);
  }

  draw(view) {
    this.admin = view.admin;
    this.busy = view.jobs.some((job) => job.active || job.state === "queued");
    const known = view.jobs.find((job) => job.id === this.chosen);
    if (!known) this.chosen = (view.jobs.find((job) => job.active) ?? view.jobs[0])?.id ?? null;
    if (this.newest !== undefined && view.jobs[0] && view.jobs[0].id !== this.newest) this.chosen = view.jobs[0].id;
    this.newest = view.jobs[0]?.id ?? null;
    keyed(this.list, [view.jobs, this.chosen], () => this.drawList(view.jobs));
    this.detail.hidden = !this.chosen;
    this.followRun();
  }

  // The run that is chosen tells by itself what is new of it.
  followRun() {
    if (this.followed?.id === this.chosen) return;
    this.followed?.close();
    const id = this.chosen;
    this.followed = id && {id, ...followWhileShown(this.host, {kind: "run", of: id}, (run) => run.id === this.chosen && this.drawDetail(run))};
  }

  drawDetail(run) {
    keyed(this.detail, [run, this.saves(run)], () => this.drawRun(run));
  }

  drawRun(run) {
    this.run = run;
    this.drawHead(run);
    this.drawButtons(run);
    for (const button of this.kinds.children) button.hidden = button.dataset.kind === "preferred" && !run.curves.preferred.length;
    this.kinds.hidden = this.plot.hidden = !run.curves.loss.length;
    this.drawPlot();
    this.comparison.show(run, this.admin);
    this.drawRest(run);
  }

  // A run that was asked to stop saves first; only where that takes long can it be ended at once.
  saves(run) {
    if (run.state !== "stopping") {
      this.stopping.delete(run.id);
      return false;
    }
    if (!this.stopping.has(run.id)) {
      this.stopping.set(run.id, performance.now());
      setTimeout(() => this.run?.id === run.id && this.drawDetail(this.run), SAVING + 100);
    }
    return performance.now() - this.stopping.get(run.id) < SAVING;
  }

  choose(id) {
    this.chosen = id;
    for (const card of this.list.querySelectorAll(".tl-card")) card.ariaPressed = String(card.dataset.id === id);
    this.followRun();
  }

  drawList(jobs) {
    const focused = document.activeElement?.closest?.(".tl-card")?.dataset.id;
    this.list.replaceChildren(...jobs.map((job) => h("li", {},
      h("button", {type: "button", class: "tl-card", "data-id": job.id, "aria-pressed": String(job.id === this.chosen),
        onclick: () => this.choose(job.id)},
        h("span", {class: "tl-card-name"}, job.name, h("span", {class: "tl-badge", "data-state": job.state}, t(`training.state.${job.state}`))),
        h("span", {class: "tl-card-facts"}, [job.model, job.method, job.dataset, progress(job)].filter(Boolean).map((fact) => h("span", {}, fact))),
        job.active && job.total ? h("progress", {max: job.total, value: job.step, "aria-label": job.name}) : null))));
    if (!jobs.length) this.list.append(h("li", {class: "tl-nothing"}, t("training.none")));
    if (focused) this.list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
  }

  drawHead(run) {
    const facts = [
      run.total ? t("training.step", {step: count(run.step), total: count(run.total)}) : null,
      run.loss === null ? null : t("training.loss", {loss: run.loss.toFixed(4)}),
      run.speed ? t("training.speed", {speed: count(Math.round(run.speed))}) : null,
      run.remaining === null ? null : t("training.left", {time: time(run.remaining)}),
    ].filter(Boolean);
    this.head.replaceChildren(...[
      h("h2", {}, run.name, h("span", {class: "tl-badge", "data-state": run.state, role: "status"}, t(`training.state.${run.state}`))),
      h("p", {class: "tl-card-facts"}, facts.map((fact) => h("span", {}, fact))),
      run.reason ? h("p", {class: ["failed", "interrupted"].includes(run.state) ? "tl-wrong-text" : "tl-quiet-text"}, run.reason) : null,
      run.log ? h("pre", {class: "tl-log"}, run.log) : null,
    ].filter(Boolean));
  }

  drawButtons(run) {
    const path = `/training/${encodeURIComponent(run.id)}`;
    const button = (words, action, kind = "tl-quiet") => h("button", {type: "button", class: kind, onclick: async () => {
      if (await attempt(action) === undefined) [this.buttons, this.detail].forEach(forgetDrawn); // what was switched off comes back
      await this.refresh();
    }}, words);
    const buttons = [];
    if (run.usable) buttons.push(button(t("training.use"), () => this.use(path, ""), "tl-strong"));
    if (run.checkpoints.length && !run.active) buttons.push(h("button", {type: "button", class: "tl-quiet", onclick: () => this.merge(run, path)}, t("training.merge")));
    if (run.resumable) buttons.push(button(t(run.state === "new" ? "training.start" : "training.resume"), () => post(`${path}/resume`, {queue: this.busy}), run.usable ? "tl-quiet" : "tl-strong"));
    const stops = [];
    const stop = (words, action, off) => {
      const one = button(words, async () => {
        for (const each of stops) each.disabled = true;
        return await action();
      });
      one.disabled = off;
      stops.push(one);
    };
    if (run.active || run.state === "queued") stop(t(run.state === "stopping" ? "training.saving" : "training.stop"), () => post(`${path}/stop`), run.state === "stopping");
    if (run.active) stop(t("training.kill"), () => post(`${path}/kill`), this.saves(run));
    buttons.push(...stops);
    buttons.push(h("button", {type: "button", class: "tl-quiet", onclick: () => untilAnswered("training-copied", () => this.copied(run.id))}, t("training.copy")));
    if (!run.active) {
      buttons.push(h("button", {type: "button", class: "tl-quiet", onclick: () =>
        showDialog(this.host, t("training.delete.title", {name: run.name}), [], t("delete"), async () => {
          const note = await attempt(() => remove(path));
          if (note === undefined) return;
          this.chosen = null;
          say(note);
        }, h("p", {}, t("training.delete.help")), {cancel: true})}, t("delete")));
    }
    keyed(this.buttons, [run.id, run.state, this.admin, this.busy, this.saves(run), run.checkpoints],
      () => this.buttons.replaceChildren(...(this.admin ? buttons : [])));
  }

  async use(path, checkpoint) {
    toast(t("training.loading"));
    const used = await post(`${path}/use`, {checkpoint});
    openChat(used.chat);
    toast(t("training.used", {name: used.adapter}));
    return used;
  }

  merge(run, path) {
    const sources = [...(run.state === "done" ? [["", t("training.finished")]] : []), ...run.checkpoints.toReversed().map((name) => [name, name])];
    showDialog(this.host, t("training.merge"), [
      {name: "name", words: t("training.merge.name"), value: `${run.model}-${run.name}`, help: t("training.merge.help")},
      {name: "checkpoint", words: t("training.adapter"), kind: "choice", choices: sources, value: sources[0][0]},
    ], t("training.merge"), async (values) => {
      await attempt(() => post(`${path}/merge`, values));
      this.refresh();
    });
  }

  drawPlot() {
    if (!this.run) return;
    this.legend.hidden = this.plot.hidden || this.kind !== "loss";
    this.legend.lastChild.hidden = !this.run.curves.evaluated.length;
    if (!this.plot.clientWidth) return;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.plot.clientWidth, 220];
    this.plot.width = width * ratio;
    this.plot.height = height * ratio;
    const names = KINDS[this.kind].filter((name) => this.run.curves[name]?.length);
    const points = names.flatMap((name) => this.run.curves[name]);
    const last = points.length ? points.at(-1)[1] : null;
    this.plot.dataset.points = points.length;
    this.plot.setAttribute("aria-label", `${t(`training.curve.${this.kind}`)}: ${last === null ? "–" : figure(last, this.kind)}`);
    const pen = this.plot.getContext("2d");
    pen.scale(ratio, ratio);
    if (!points.length) return;
    const style = getComputedStyle(this.host);
    const colour = (name) => style.getPropertyValue(name).trim();
    const end = Math.max(this.run.total || 1, ...points.map(([step]) => step));
    let [low, high] = [Math.min(...points.map((point) => point[1])), Math.max(...points.map((point) => point[1]))];
    if (high === low) [low, high] = [low - Math.abs(low || 1) / 10, high + Math.abs(high || 1) / 10];
    const [left, top, bottom] = [58, 10, 24];
    const x = (step) => left + (width - left - 8) * (end > 1 ? (step - 1) / (end - 1) : 0.5);
    const y = (value) => top + (height - top - bottom) * (1 - (value - low) / (high - low));
    pen.font = "12px system-ui, sans-serif";
    pen.fillStyle = colour("--tl-quiet");
    pen.strokeStyle = colour("--tl-soft");
    pen.textBaseline = "middle";
    for (let line = 0; line <= 4; line += 1) {
      const value = low + (high - low) * line / 4;
      pen.beginPath();
      pen.moveTo(left, y(value));
      pen.lineTo(width - 8, y(value));
      pen.stroke();
      pen.textAlign = "right";
      pen.fillText(figure(value, this.kind), left - 6, y(value));
    }
    pen.textAlign = "left";
    pen.fillText("1", left, height - 10);
    pen.textAlign = "right";
    pen.fillText(count(end), width - 8, height - 10);
    for (const name of names) {
      pen.strokeStyle = pen.fillStyle = colour(LINES[name] ?? "--tl-accent");
      pen.lineWidth = name === "loss" ? 1 : 2;
      pen.beginPath();
      for (const [step, value] of this.run.curves[name]) pen.lineTo(x(step), y(value));
      pen.stroke();
      if (name === "evaluated" || this.run.curves[name].length === 1) {
        for (const [step, value] of this.run.curves[name]) {
          pen.beginPath();
          pen.arc(x(step), y(value), 3, 0, 7);
          pen.fill();
        }
      }
    }
  }

  drawRest(run) {
    const path = `/training/${encodeURIComponent(run.id)}`;
    const open = new Set([...this.rest.querySelectorAll("details[open]")].map((part) => part.dataset.part));
    if (run.state === "new") open.add("commands"); // they are what it waits for
    const part = (name, ...content) => h("details", {"data-part": name, open: open.has(name)}, h("summary", {}, t(`training.${name}`)), ...content);
    const samples = run.samples.length ? h("section", {class: "tl-samples", "aria-label": t("training.samples")},
      h("h3", {}, t("training.samples")),
      run.samples.toReversed().map((one) => h("article", {},
        h("h4", {}, one.prompt, h("small", {}, t("training.sample.step", {step: count(one.step)}))),
        h("div", {class: "tl-pair"}, [["training.sample.reply", one.reply], ["training.sample.base", one.base]].map(([key, text]) =>
          h("div", {}, h("small", {}, t(key)), h("p", {}, text))))))) : null;
    this.rest.replaceChildren(...[
      run.about || run.data ? h("p", {class: "tl-quiet-text"}, [run.about, run.data].filter(Boolean).join(" · ")) : null,
      run.merge ? h("p", {class: run.merge.state === "failed" ? "tl-wrong-text" : "tl-quiet-text", role: "status"},
        t(`training.merge.${run.merge.state}`, {name: run.merge.name, reason: run.merge.reason})) : null,
      ...run.notes.map((note) => h("p", {class: "tl-quiet-text"}, note)),
      samples,
      run.checkpoints.length ? part("checkpoints", h("ul", {class: "tl-checkpoints"}, run.checkpoints.map((name) => h("li", {}, h("span", {}, name),
        this.admin ? h("button", {type: "button", class: "tl-link", onclick: () => attempt(() => this.use(path, name))}, t("training.use")) : null)))) : null,
      part("commands", h("pre", {class: "tl-log"}, run.commands + (run.accelerate ? `\n\n# accelerate.yaml\n${run.accelerate}` : "")),
        h("button", {type: "button", class: "tl-link", onclick: () => copyText(run.commands)}, t("copy"))),
    ].filter(Boolean));
  }
}

function progress(job) {
  if (!job.total) return null;
  const words = t("training.step", {step: count(job.step), total: count(job.total)});
  return job.remaining === null ? words : `${words}, ${t("training.left", {time: time(job.remaining)})}`;
}

function figure(value, kind) {
  if (kind === "memory") return `${(value / 1e9).toFixed(2)} GB`;
  if (kind === "speed") return count(Math.round(value));
  if (Math.abs(value) >= 1e5) return value.toExponential(1);
  return Math.abs(value) >= 0.01 || value === 0 ? value.toFixed(value >= 100 ? 0 : 3) : value.toExponential(1);
}

function time(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export function start(element, copied) {
  addStyle("training.css");
  new Training(element.querySelector(".tl-training"), copied);
}
