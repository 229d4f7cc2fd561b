// @ts-check
// The connection to the server's event stream (GET chats/events), with the topics of one or several tabs. Runs in event_worker.js,
// which all tabs of a browser share, and in the page itself where there are no shared workers.

/** @typedef {{kind: string, of?: string, after?: string, tokens?: boolean, form?: string}} Topic */

const FIRST_BYTES = 15_000; // milliseconds in which a stream shows that it comes piece by piece
const SILENCE = 40_000; // the server says something every 15 s
const LINGER = 3_000; // how long a stream that nobody follows stays open: a tab is reloaded, or another one comes to the front
const MOST_IN_ADDRESS = 20; // topics that an address has room for; proxies take 8 KB. The others are told afterwards
const PAUSES = [300, 1_000, 2_000, 4_000]; // between attempts to connect
const POLL_PAUSE = 300;
const POLL_TIME = 300_000; // how long a stream that does not come piece by piece is asked for its first news, again and again

export class EventConnection {
  /**
   * @param {string} address of chats/events
   * @param {string} language that the page is in
   * @param {(label: string, data: string, position: string) => void} deliver takes an event, its data as JSON
   * @param {(state: "open" | "lost" | "out") => void} report is told whether there is a connection; "out": the login is over
   */
  constructor(address, language, deliver, report) {
    this.address = address;
    this.language = language;
    this.deliver = deliver;
    this.report = report;
    /** @type {Map<string, {name: string, topic: Topic}>} */
    this.wanted = new Map(); // by the label of whoever follows
    this.labels = new Map(); // the other way round: what an event of the server is called, and the label
    this.known = new Set(); // names of what the server follows on this connection
    this.count = 0;
    this.stream = ""; // the id of the open stream
    this.running = false;
    this.changing = false;
    this.pollsUntil = 0;
    this.heard = 0;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.ending = undefined;
    /** @type {AbortController | null} */
    this.abort = null;
    this.wake = () => {};
  }

  /**
   * Follow `topics` from now on, and no others. Those that are followed already go on from where they are.
   * @param {Iterable<[string, Topic]>} topics by label
   */
  follow(topics) {
    const next = new Map();
    for (const [label, topic] of topics) {
      // What is followed anew has another name for the server: what was on its way before is not taken for its news.
      next.set(label, this.wanted.get(label) ?? {name: `${label}.${this.count += 1}`, topic: {...topic}});
    }
    this.wanted = next;
    this.labels = new Map([...next].map(([label, {name}]) => [name, label]));
    clearTimeout(this.ending);
    if (!this.running) this.run();
    else if (next.size) this.change();
    else this.ending = setTimeout(() => this.abort?.abort(), LINGER);
  }

  // Whether the connection still lives: after the machine has slept, or when the network is back.
  look() {
    if (this.abort && Date.now() - this.heard > SILENCE) this.abort.abort();
    this.wake();
  }

  async run() {
    if (!this.wanted.size) return;
    this.running = true;
    const watch = setInterval(() => this.look(), 5_000);
    let failed = 0;
    while (this.wanted.size) {
      const came = await this.connect();
      this.stream = "";
      this.known.clear();
      if (came === "out") break;
      failed = came ? 0 : failed + 1;
      if (failed) this.report("lost");
      await this.pause(failed ? PAUSES[Math.min(failed, PAUSES.length) - 1] : this.polls ? POLL_PAUSE : 0, Boolean(failed));
    }
    clearInterval(watch);
    this.running = false;
  }

  get polls() {
    return Date.now() < this.pollsUntil;
  }

  /** @param {number} time @param {boolean} lost */
  pause(time, lost) {
    return new Promise((done) => {
      const timer = setTimeout(done, time);
      if (lost) this.wake = () => { clearTimeout(timer); done(undefined); };
    }).finally(() => { this.wake = () => {}; });
  }

  // One stream, to its end. Returns whether anything came.
  async connect() {
    const abort = this.abort = new AbortController();
    const polls = this.polls;
    const asked = [...this.wanted.values()].slice(0, polls ? undefined : MOST_IN_ADDRESS);
    const query = new URLSearchParams({topics: JSON.stringify(topicsByName(asked))});
    if (polls) query.set("once", "true");
    let came = false;
    this.heard = Date.now();
    const first = setTimeout(() => {
      if (polls) return;
      this.pollsUntil = Date.now() + POLL_TIME;
      abort.abort();
    }, FIRST_BYTES);
    try {
      const reply = await fetch(`${this.address}?${query}`,
        {signal: abort.signal, cache: "no-store", headers: {Accept: "text/event-stream", "Accept-Language": this.language}});
      if (reply.status === 401) {
        this.report("out");
        return "out";
      }
      if (!reply.ok || !reply.body) return false;
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        this.heard = Date.now();
        clearTimeout(first);
        if (!came) {
          came = true;
          this.report("open");
          this.stream = polls ? "" : reply.headers.get("X-Event-Stream") ?? "";
          for (const {name} of asked) this.known.add(name);
          this.change();
        }
        const events = (rest + part.value).split("\n\n");
        rest = events.pop() ?? "";
        for (const event of events) this.take(event);
      }
    } catch {
      // the connection broke, or was given up
    } finally {
      clearTimeout(first);
      if (this.abort === abort) this.abort = null;
      abort.abort();
    }
    return came;
  }

  /** @param {string} event */
  take(event) {
    let name = "";
    let position = "";
    let data = "";
    for (const line of event.split("\n")) {
      if (line.startsWith("data:")) data = line.slice(5);
      else if (line.startsWith("event:")) name = line.slice(6);
      else if (line.startsWith("id:")) position = line.slice(3);
    }
    const label = this.labels.get(name);
    const one = this.wanted.get(label);
    if (!one || !data) return;
    if (position) one.topic.after = position;
    this.deliver(label, data, position);
  }

  // Tell the server what is followed now, where that is not what it follows.
  async change() {
    if (this.changing) return;
    this.changing = true;
    await null; // what is changed in one go is told at once
    try {
      for (;;) {
        const add = [...this.wanted.values()].filter(({name}) => !this.known.has(name));
        const remove = [...this.known].filter((name) => !this.labels.has(name));
        if (!this.abort || !this.wanted.size || (!add.length && !remove.length)) return;
        if (!this.stream) {
          if (this.polls) this.abort.abort(); // it is asked for again, with what is wanted now
          return;
        }
        const stream = this.stream;
        const reply = await fetch(`${this.address}/${stream}`, {
          method: "POST",
          headers: {"Content-Type": "application/json"},
          body: JSON.stringify({add: topicsByName(add), remove}),
        }).catch(() => null);
        if (stream !== this.stream) continue; // there is another one by now
        if (!reply?.ok) {
          this.abort?.abort();
          return;
        }
        for (const {name} of add) this.known.add(name);
        for (const name of remove) this.known.delete(name);
      }
    } finally {
      this.changing = false;
    }
  }
}

/** @param {{name: string, topic: Topic}[]} followed */
function topicsByName(followed) {
  return Object.fromEntries(followed.map(({name, topic}) => [name, topic]));
}
