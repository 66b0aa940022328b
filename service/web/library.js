// The documents panel: which documents there are, and deleting those that were uploaded.
import { isAdmin } from "./access.js";
import { getJSON } from "./api.js";
import { announce, byId, el, icon } from "./dom.js";
import { dots, plural } from "./format.js";
import { createPanel } from "./panel.js";
import { problem } from "./problem.js";
import { findJob, watchJob } from "./indexing.js";

const BATCH = 100; // rows put in the page at a time; a corpus may hold many thousands
const FILTER_FROM = 8;
const opener = byId("open-index");
const list = byId("documents");
const trouble = byId("index-problem");
const panel = createPanel(byId("index-panel"), byId("index-title"), () => opener.setAttribute("aria-expanded", "false"));

let documents = null; // not told yet
let limit = BATCH;
let asked = null; // the id of the document whose deletion is to be confirmed

function draw() {
  if (documents === null) return;
  const wanted = byId("filter").value.trim().toLowerCase();
  const found = documents.filter((each) => !wanted || `${each.title} ${each.document}`.toLowerCase().includes(wanted));
  list.replaceChildren(...found.slice(0, limit).map(row));
  if (found.length === 0) list.append(el("li", { class: "empty" }, wanted ? "No document matches." : nothingYet()));
  byId("more").hidden = found.length <= limit;
}

const nothingYet = () => `No documents yet. ${isAdmin() ? "Upload some, or put files into a corpus folder and re-index." : "An administrator can add some."}`;

function row(each) {
  const readers = (each.groups ?? []).map((some) => some.join(" or ")).join(", and ");
  const size = dots(
    plural(each.chunks, "chunk"),
    each.pages ? plural(each.pages, "page") : "",
    each.format,
    each.uploaded ? "uploaded" : "",
    readers && `only for ${readers}`,
  );
  const item = el(
    "li",
    { "data-document": each.document },
    el("span", { class: "document-title" }, each.title || each.document),
    el("span", { class: "path" }, each.document),
    el("span", { class: "document-size" }, size),
  );
  if (each.uploaded && isAdmin()) item.append(asked === each.id ? confirmation(each) : deleteButton(each));
  return item;
}

function deleteButton(each) {
  const label = `Delete ${each.document}`;
  const ask = () => {
    asked = each.id;
    draw();
    list.querySelector(".confirm button").focus();
  };
  return el("button", { class: "button quiet icon delete", type: "button", "aria-label": label, title: label, onclick: ask }, icon("delete"));
}

function confirmation(each) {
  const what = each.format === "jsonl" ? `${each.document} with all its records` : each.document;
  const keep = () => {
    asked = null;
    draw();
    list.querySelector(`[data-document="${CSS.escape(each.document)}"] button`)?.focus();
  };
  return el(
    "div",
    { class: "confirm", role: "group", "aria-label": `Delete ${what}?` },
    el("p", {}, `Delete ${what}? No answer will use it any more.`),
    el("button", { class: "button", type: "button", onclick: keep }, "Keep it"),
    el("button", { class: "button danger", type: "button", onclick: () => remove(each) }, "Delete"),
  );
}

async function remove(each) {
  trouble.replaceChildren();
  asked = null;
  try {
    const { job } = await getJSON(`/documents/${encodeURIComponent(each.id)}`, { method: "DELETE" });
    announce(`${each.document} is being deleted.`);
    byId("index-title").focus();
    await watchJob(job);
  } catch (failure) {
    trouble.replaceChildren(problem(failure, () => remove(each)));
    draw();
  }
}

/** Read the list of documents again; gives it to whoever listens for "documents". */
export async function loadDocuments() {
  const body = await getJSON("/documents");
  documents = body.documents;
  const chunks = documents.reduce((sum, each) => sum + (each.chunks ?? 0), 0);
  byId("index-meta").textContent = dots(plural(documents.length, "document"), plural(chunks, "chunk"), `generation ${body.generation}`);
  byId("filter-row").hidden = documents.length < FILTER_FROM;
  draw();
  document.dispatchEvent(new CustomEvent("documents", { detail: body }));
}

// Jobs are for administrators; whether this is one may be told only after the panel was opened.
async function showRunningJob() {
  if (panel.isOpen() && isAdmin()) await findJob();
}

async function openIndex() {
  panel.open(opener);
  opener.setAttribute("aria-expanded", "true");
  trouble.replaceChildren();
  try {
    await loadDocuments();
    await showRunningJob();
  } catch (failure) {
    trouble.replaceChildren(problem(failure, openIndex));
  }
}

document.addEventListener("access", () => showRunningJob().catch((failure) => trouble.replaceChildren(problem(failure, openIndex))));
opener.addEventListener("click", () => (panel.isOpen() ? panel.close() : openIndex()));
byId("index-close").addEventListener("click", () => panel.close());
byId("filter").addEventListener("input", () => {
  limit = BATCH;
  draw();
});
byId("more").addEventListener("click", () => {
  limit += BATCH;
  draw();
});
document.addEventListener("access", draw);
document.addEventListener("job-end", ({ detail }) => {
  if (detail.state === "done") loadDocuments().catch((failure) => trouble.replaceChildren(problem(failure, openIndex)));
});
