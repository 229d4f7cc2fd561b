// @ts-check
// Gradio's stream of answers, kept open until the last one has come. The server ends it when no answer is missing; the answer to an
// event that is asked for in that moment would wait for a stream that the page does not open, because its own is not closed yet.

const ask = window.fetch;
const encoder = new TextEncoder();
/** @type {Set<string>} */
const waiting = new Set(); // ids of events without an answer
/** @type {Set<string>} */
const early = new Set(); // ids whose answer came before the page knew them
/** @type {Set<Promise<void>>} */
const joining = new Set();

/** @param {Promise<Response>} answer to an event that is put into the queue */
function join(answer) {
  const noted = answer.then((reply) => (reply.ok ? reply.clone().json() : {event_id: ""})).then(({event_id: id}) => {
    if (id && !early.delete(id)) waiting.add(id);
  }).catch(() => {}).finally(() => joining.delete(noted));
  joining.add(noted);
}

/** @param {ReadableStream<Uint8Array>} body */
async function* messagesOf(body) {
  const reader = body.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const messages = (rest + part.value).split("\n\n");
    rest = messages.pop() ?? "";
    yield* messages;
  }
}

/** @param {Response} first @param {() => Promise<Response>} again */
async function* untilAnswered(first, again) {
  for (let reply = first; ; reply = await again()) {
    if (!reply.ok || !reply.body) return;
    let end = "";
    for await (const message of messagesOf(reply.body)) {
      const {msg, event_id: id} = JSON.parse(message.replace(/^data: ?/, "") || "{}");
      if (msg === "process_completed" && !waiting.delete(id)) early.add(id);
      if (msg === "close_stream") end = message;
      else yield `${message}\n\n`;
    }
    await Promise.all(joining);
    if (!end) return;
    if (!waiting.size) {
      yield `${end}\n\n`;
      return;
    }
  }
}

/** @type {typeof fetch} */
async function fetched(input, options) {
  const url = String(input instanceof Request ? input.url : input);
  const answer = ask(input, options);
  if (url.includes("/gradio_api/queue/join")) join(answer);
  if (!url.includes("/gradio_api/queue/data")) return answer;
  const first = await answer;
  if (!first.ok || !first.body) return first;
  const messages = untilAnswered(first, () => ask(input, options));
  const body = new ReadableStream({
    async pull(controller) {
      const {value, done} = await messages.next();
      if (done) controller.close();
      else controller.enqueue(encoder.encode(value || ""));
    },
    async cancel() {
      await messages.return(undefined);
    },
  });
  return new Response(body, {status: first.status, headers: first.headers});
}

window.fetch = fetched;
