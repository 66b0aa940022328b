// The index panel: which documents there are, and reading them again.
import { getJSON, request } from "./api.js";
import { byId, el } from "./dom.js";
import { dots, plural } from "./format.js";
import { cancelJob, createJobView, follow, isFinal, percent } from "./job.js";
import { currentKey, forgetKey } from "./key.js";
import { createPanel } from "./panel.js";
import { problem } from "./problem.js";

const BATCH = 100; // rows put in the page at a time; a corpus may hold many thousands
const opener = byId("open-index");
const list = byId("documents");
const trouble = byId("index-problem");
const reindexButton = byId("reindex");
const panel = createPanel(byId("index-panel"), byId("index-title"), () => opener.setAttribute("aria-expanded", "false"));
const showJob = createJobView(byId("job"), () => following && cancelJob(following).catch(complain));

let documents = [];
let limit = BATCH;
let following = null;

function complain(failure) {
  trouble.replaceChildren(problem(failure, null));
}

function draw() {
  const wanted = byId("filter").value.trim().toLowerCase();
  const found = documents.filter((each) => !wanted || `${each.title} ${each.document}`.toLowerCase().includes(wanted));
  list.replaceChildren(...found.slice(0, limit).map(row));
  if (found.length === 0) list.append(el("li", { class: "empty" }, wanted ? "No document matches." : "No documents yet. Put files into a corpus folder, then re-index."));
  byId("more").hidden = found.length <= limit;
}

function row(each) {
  const size = dots(plural(each.chunks, "chunk"), each.pages ? plural(each.pages, "page") : "", each.format);
  return el(
    "li",
    {},
    el("span", { class: "document-title" }, each.title || each.document),
    el("span", { class: "path" }, each.document),
    el("span", { class: "document-size" }, size),
  );
}

/** Read the list of documents again; gives it to whoever listens for "documents". */
export async function loadDocuments() {
  const body = await getJSON("/documents");
  documents = body.documents;
  const chunks = documents.reduce((sum, each) => sum + (each.chunks ?? 0), 0);
  byId("index-meta").textContent = dots(plural(documents.length, "document"), plural(chunks, "chunk"), `generation ${body.generation}`);
  byId("filter-row").hidden = documents.length < 8;
  draw();
  document.dispatchEvent(new CustomEvent("documents", { detail: body }));
}

async function watch(job) {
  if (following) return;
  following = job;
  reindexButton.disabled = true;
  try {
    const last = await follow(job, (now) => {
      following = now;
      showJob(now);
      badge(now);
    });
    following = null;
    if (last.state === "done") await loadDocuments();
  } catch (failure) {
    complain(failure);
  } finally {
    following = null;
    reindexButton.disabled = false;
    byId("open-index-text").textContent = "Documents";
  }
}

function badge(job) {
  const share = percent(job);
  byId("open-index-text").textContent = isFinal(job) ? "Documents" : share === null ? "Indexing" : `Indexing ${share} %`;
}

async function reindex() {
  trouble.replaceChildren();
  reindexButton.disabled = true;
  try {
    const { job } = await getJSON("/reindex", { method: "POST", body: {} });
    await watch(job);
  } catch (failure) {
    trouble.replaceChildren(problem(failure, reindex));
  } finally {
    reindexButton.disabled = following !== null;
  }
}

async function openIndex() {
  byId("key-row").hidden = !currentKey();
  panel.open(opener);
  opener.setAttribute("aria-expanded", "true");
  trouble.replaceChildren();
  try {
    const [, { jobs }] = await Promise.all([loadDocuments(), getJSON("/jobs")]);
    if (jobs.length && !isFinal(jobs[0])) watch(jobs[0]);
    else if (jobs.length && !following) showJob(jobs[0]);
  } catch (failure) {
    trouble.replaceChildren(problem(failure, openIndex));
  }
}

opener.addEventListener("click", () => (panel.isOpen() ? panel.close() : openIndex()));
byId("index-close").addEventListener("click", () => panel.close());
reindexButton.addEventListener("click", reindex);
byId("filter").addEventListener("input", () => {
  limit = BATCH;
  draw();
});
byId("more").addEventListener("click", () => {
  limit += BATCH;
  draw();
});
byId("forget-key").addEventListener("click", () => {
  forgetKey();
  byId("key-row").hidden = true;
});
