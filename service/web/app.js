// The chat page: the question box, whether the service is ready, and what the other parts tell each other.
import { access, loadAccess } from "./access.js";
import { loadAdapters } from "./adapters.js";
import { ask, isEmpty, isRunning, onChatChange, startOver, stop } from "./chat.js";
import { byId, el } from "./dom.js";
import { plural } from "./format.js";
import { loadDocuments } from "./library.js";
import { changeKey, forgetKey } from "./key.js";
import { loadModes, selectedModes } from "./modes.js";
import { checkNow, showStatus, watchReadiness } from "./status.js";
import "./uploads.js";
import { showExamples } from "./welcome.js";

const box = byId("question");
const COUNT_FROM = 0.8; // of the limit: before that a counter is only noise

let ready = false;
let generation = null;
let documentCount = null;

function update() {
  const hadFocus = document.activeElement === byId("stop");
  byId("send").disabled = !ready || box.value.trim() === "";
  byId("send").hidden = isRunning();
  byId("stop").hidden = !isRunning();
  byId("new").hidden = isEmpty();
  byId("welcome").hidden = !isEmpty();
  byId("conversation-title").hidden = isEmpty();
  const counter = byId("counter");
  counter.hidden = box.value.length < box.maxLength * COUNT_FROM;
  counter.textContent = counter.hidden ? "" : `${box.value.length.toLocaleString("en")} of ${box.maxLength.toLocaleString("en")} characters`;
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
  for (const example of document.querySelectorAll(".example")) example.disabled = !ready;
  if (hadFocus && !isRunning()) box.focus(); // the button it was on is gone
}

function send(question) {
  if (!ready || isRunning() || question.trim() === "") return;
  box.value = "";
  ask(question.trim(), selectedModes());
}

function showReady() {
  showStatus("ready", documentCount === null ? "Ready" : plural(documentCount, "document"));
}

async function load() {
  // What fails here is told again, in full, by the question or the panel that needs it.
  const isKnown = await loadAccess().then(() => true, () => false);
  if (isKnown) await Promise.allSettled([loadAdapters().then(loadModes), loadDocuments()]);
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
  update();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send(box.value);
});
box.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send(box.value);
});
box.addEventListener("input", update);
byId("stop").addEventListener("click", stop);
byId("new").addEventListener("click", () => {
  startOver();
  box.focus();
});
onChatChange(update);
document.addEventListener("trouble", checkNow);
document.addEventListener("key-change", load);
for (const button of document.querySelectorAll("[data-key=change]")) button.addEventListener("click", changeKey);
byId("forget-key").addEventListener("click", forgetKey);
document.addEventListener("access", () => {
  box.maxLength = access().question_chars;
  update();
});
document.addEventListener("documents", ({ detail }) => {
  documentCount = detail.documents.length;
  generation = detail.generation;
  showExamples(detail.documents, send);
  if (ready) showReady();
  update();
});

update();
watchReadiness(onReadiness);
