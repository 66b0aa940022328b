// One answer: waiting, streaming, answered, refused, stopped or failed.
import { events, Failure, request, unreachable } from "./api.js";
import { createAnswerText, createSpeaker } from "./answer-text.js";
import { adapterFor } from "./adapters.js";
import { announce, el } from "./dom.js";
import { evidence } from "./evidence.js";
import { facts } from "./facts.js";
import { createFeedback } from "./feedback.js";
import { modeName, plural } from "./format.js";
import { problem } from "./problem.js";

const CLOSED_BOOK = new Set(["base", "tuned"]);

/**
 * An answer to `question` in `mode`. `named` shows the mode above it, for two side by side. `open(source, opener)` shows
 * a source; `retry()` asks again. run(history, signal, progress) asks and returns when it is over, however it ended;
 * `result` is then the whole answer, or null.
 */
export function createAnswer({ question, mode, named, open, retry }) {
  const adapter = adapterFor(mode);
  const body = el("div", { class: "answer-text", "data-part": "answer" });
  const after = el("div", { class: "answer-after" });
  const waiting = el("p", { class: "waiting-line" });
  const title = named ? el("h3", { class: "answer-mode" }, modeName(mode)) : null;
  const element = el("section", { class: "answer", "data-state": "waiting", "data-mode": mode }, title, waiting, body, after);
  const text = createAnswerText(body, open);
  const speaker = createSpeaker(announce);
  const said = named ? `${modeName(mode)}: ` : "";
  let result = null;

  function setState(state) {
    element.dataset.state = state;
    element.toggleAttribute("aria-busy", false);
    if (state === "waiting" || state === "streaming") element.setAttribute("aria-busy", "true");
    waiting.hidden = state !== "waiting";
  }

  function clear(line) {
    result = null;
    text.clear();
    after.replaceChildren();
    waiting.textContent = line;
    setState("waiting");
  }

  function finish(answer, requestId) {
    result = { ...answer, question };
    text.settle(answer.answer, answer.refused ? [] : answer.citations);
    speaker.end();
    setState(answer.refused ? "refused" : "answered");
    after.replaceChildren(...evidence(result, open), facts(result), createFeedback(result, requestId));
    announce(answer.refused ? `${said}The documents do not say.` : `${said}Answer complete, ${plural(answer.citations.length, "source")}.`);
  }

  function stopped() {
    text.settle(text.text, []);
    speaker.end();
    setState("stopped");
    after.replaceChildren(el("p", { class: "aside" }, "Stopped. ", el("button", { class: "link", type: "button", onclick: retry }, "Ask again")));
    announce(`${said}Stopped.`);
  }

  async function receive(history, signal, progress) {
    const sent = { question, mode, stream: true, history, ...(adapter && { adapter }) };
    const response = await request("/ask", { method: "POST", body: sent, signal, accept: "text/event-stream" });
    for await (const { name, data } of events(response)) {
      if (name === "token") {
        setState("streaming");
        text.write(data.text);
        speaker.write(data.text);
      } else if (name === "citations") text.settle(text.text, data.citations);
      else if (name === "error") throw new Failure(data.error);
      else if (name === "done") return finish(data, response.headers.get("X-Request-ID") ?? "");
      progress();
    }
    throw unreachable("The connection was lost before the answer was complete.");
  }

  return {
    element,
    get result() {
      return result;
    },
    hold: () => clear("Waiting for the other answer"),
    async run(history, signal, progress) {
      clear(CLOSED_BOOK.has(mode) ? "Asking the model" : "Searching the documents");
      announce(`${said}Looking for an answer.`);
      try {
        signal.throwIfAborted();
        await receive(history, signal, progress);
      } catch (failure) {
        if (signal.aborted) return stopped();
        setState("failed");
        after.replaceChildren(problem(failure, retry));
        if (failure.code === "network" || failure.code === "unavailable") document.dispatchEvent(new Event("trouble"));
      }
    },
  };
}
