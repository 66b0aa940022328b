// The chat page: the question box, one answer at a time, and what the other parts tell each other.
import { events, Failure, request, unreachable } from "./api.js";
import { byId, el } from "./dom.js";
import { plural } from "./format.js";
import { loadDocuments } from "./library.js";
import { loadModes, selectedMode } from "./modes.js";
import { closeSource, openSource } from "./source.js";
import { checkNow, showStatus, watchReadiness } from "./status.js";
import { createTurn } from "./turn.js";
import { showExamples } from "./welcome.js";

const box = byId("question");
const conversation = byId("conversation");
const COUNT_FROM = 0.8; // of the limit: before that a counter is only noise

let ready = false;
let generation = null;
let documentCount = null;
let running = null; // the AbortController of the answer that is being written

function updateComposer() {
  const blank = box.value.trim() === "";
  byId("send").disabled = !ready || blank;
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
  byId("new").hidden = conversation.childElementCount === 0;
  const counter = byId("counter");
  counter.hidden = box.value.length < box.maxLength * COUNT_FROM;
  counter.textContent = counter.hidden ? "" : `${box.value.length} of ${box.maxLength} characters`;
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
  for (const example of document.querySelectorAll(".example")) example.disabled = !ready;
}

function followStream() {
  const below = document.documentElement.scrollHeight - innerHeight - scrollY;
  if (below < 160) scrollTo({ top: document.documentElement.scrollHeight });
}

async function receive(turn, signal) {
  const body = { question: turn.question, mode: turn.mode, stream: true };
  const response = await request("/ask", { method: "POST", body, signal, accept: "text/event-stream" });
  for await (const { name, data } of events(response)) {
    if (name === "token") turn.write(data.text);
    else if (name === "citations") turn.cite(data.citations);
    else if (name === "error") throw new Failure(data.error);
    else if (name === "done") return turn.finish(data);
    followStream();
  }
  throw unreachable("The connection was lost before the answer was complete.");
}

async function run(turn) {
  if (running) return;
  running = new AbortController();
  const { signal } = running;
  turn.start();
  updateComposer();
  turn.element.scrollIntoView({ block: "start" });
  try {
    await receive(turn, signal);
  } catch (failure) {
    if (signal.aborted) turn.stopped();
    else {
      turn.failed(failure);
      if (failure.code === "network" || failure.code === "unavailable") checkNow();
    }
  } finally {
    const hadFocus = document.activeElement === byId("stop");
    running = null;
    updateComposer();
    if (hadFocus) box.focus(); // the button it was on is gone
  }
}

function ask(question) {
  if (!ready || running || question.trim() === "") return;
  const turn = createTurn(question.trim(), selectedMode(), { open: openSource, retry: () => run(turn) });
  conversation.append(turn.element);
  byId("welcome").hidden = true;
  byId("conversation-title").hidden = false;
  box.value = "";
  run(turn);
}

function startOver() {
  running?.abort();
  closeSource();
  conversation.replaceChildren();
  byId("welcome").hidden = false;
  byId("conversation-title").hidden = true;
  updateComposer();
  box.focus();
}

function showReady() {
  showStatus("ready", documentCount === null ? "Ready" : plural(documentCount, "document"));
}

function load() {
  loadModes().catch(() => {}); // asking says what is wrong; without modes the server's default answers
  loadDocuments().catch(() => {});
}

function onReadiness(found) {
  const notice = byId("notice");
  const wasReady = ready;
  ready = found.state === "ready";
  notice.hidden = ready;
  if (ready) {
    showReady();
    if (!wasReady || found.generation !== generation) load();
    generation = found.generation;
  } else {
    showStatus(found.state, found.state === "loading" ? "Getting ready" : "Offline");
    const line = found.state === "loading" ? `Getting ready: ${found.reason}` : found.reason;
    if (notice.textContent !== line) notice.replaceChildren(el("span", {}, line));
  }
  updateComposer();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(box.value);
});
box.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask(box.value);
});
box.addEventListener("input", updateComposer);
byId("stop").addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", startOver);
document.addEventListener("key-change", load);
document.addEventListener("documents", ({ detail }) => {
  documentCount = detail.documents.length;
  generation = detail.generation;
  showExamples(detail.documents, ask);
  if (ready) showReady();
  updateComposer();
});

updateComposer();
watchReadiness(onReadiness);
