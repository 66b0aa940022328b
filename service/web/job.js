// One indexing job: followed over server-sent events, shown with counts, the current file, the time left and failures.
import { events, getJSON, request, unreachable } from "./api.js";
import { el } from "./dom.js";
import { plural, timeLeft } from "./format.js";

const FINAL = new Set(["done", "failed", "cancelled"]);
const STATES = { queued: "Waiting to start", running: "Indexing", done: "Index is up to date", failed: "Indexing failed", cancelled: "Indexing was cancelled" };
const STAGES = { scan: "Looking for changes", read: "Reading documents", embed: "Embedding chunks", publish: "Publishing the index" };
const COUNTED = { read: "document", embed: "chunk" };
const COUNTS = ["added", "changed", "renamed", "deleted", "unchanged", "failed"];
const ATTEMPTS = 5;

export const isFinal = (job) => FINAL.has(job.state);

/** Call `update(job)` on every change until the job is over; a broken stream is opened again. Returns the last state. */
export async function follow(job, update) {
  update(job);
  let lost = 0;
  while (!isFinal(job)) {
    try {
      const response = await request(`/jobs/${encodeURIComponent(job.id)}/events`, { accept: "text/event-stream" });
      for await (const { name, data } of events(response)) {
        if (name !== "job") continue;
        lost = 0;
        job = data;
        update(job);
      }
    } catch (failure) {
      if (failure.code !== "network") throw failure;
    }
    if (isFinal(job)) return job;
    if (++lost > ATTEMPTS) throw unreachable("The progress of the job can no longer be read.");
    await new Promise((wake) => setTimeout(wake, 400 * lost));
    job = await getJSON(`/jobs/${encodeURIComponent(job.id)}`).catch((failure) => {
      if (failure.code === "network") return job;
      throw failure;
    });
    update(job);
  }
  return job;
}

export const cancelJob = (job) => request(`/jobs/${encodeURIComponent(job.id)}`, { method: "DELETE" });

export function percent(job) {
  return job.total > 0 ? Math.min(100, Math.round((100 * job.done) / job.total)) : null;
}

/** Fill `container` with the job's state. Kept in place between updates, so that focus and the bar stay put. */
export function createJobView(container, cancel) {
  const state = el("p", { class: "job-state", role: "status" });
  const amount = el("p", { class: "job-amount" });
  const bar = el("progress", { "aria-label": "Progress of indexing" });
  const current = el("p", { class: "job-current path" });
  const counts = el("ul", { class: "job-counts", "aria-label": "Counts" });
  const stop = el("button", { class: "button", type: "button", onclick: cancel }, "Cancel");
  const failures = el("div", { class: "job-failures" });
  container.replaceChildren(el("div", { class: "job-head" }, el("div", {}, state, amount), stop), bar, current, counts, failures);

  return (job) => {
    const over = isFinal(job);
    container.hidden = false;
    container.dataset.state = job.state;
    setText(state, (job.state === "running" && STAGES[job.stage]) || (STATES[job.state] ?? job.state));
    const left = job.state === "running" ? timeLeft(job.eta_seconds ?? NaN) : "";
    const counted = COUNTED[job.stage] ?? "step";
    setText(amount, !over && job.total > 0 ? `${job.done} of ${plural(job.total, counted)}${left ? `, ${left}` : ""}` : "");
    bar.hidden = over;
    if (job.total > 0) {
      bar.max = job.total;
      bar.value = job.done;
    } else bar.removeAttribute("value");
    setText(current, over ? (job.error ? errorText(job.error) : "") : leftToRight(job.current));
    current.classList.toggle("path", !over);
    stop.hidden = over;
    const shown = COUNTS.filter((name) => job.counts?.[name] > 0);
    counts.replaceChildren(...shown.map((name) => el("li", { "data-count": name }, `${job.counts[name]} ${name}`)));
    showFailures(failures, job.failures ?? []);
  };
}

function errorText(error) {
  return typeof error === "string" ? error : [error.message, error.expected, error.do].filter(Boolean).join(" ");
}

function showFailures(container, list) {
  if (Number(container.dataset.count ?? 0) === list.length) return; // leaves a list that is being read open
  container.dataset.count = list.length;
  container.replaceChildren();
  if (list.length === 0) return;
  const rows = list.map(({ document, reason }) => el("li", {}, el("span", { class: "path" }, document), el("span", {}, reason)));
  container.append(el("details", { open: true }, el("summary", {}, `${plural(list.length, "document")} could not be read`), el("ul", {}, ...rows)));
}

/** A long path is cut at its beginning by a right-to-left box; the marks keep its slashes in place. */
const leftToRight = (path) => (path ? `\u200e${path}\u200e` : "");

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text; // a status region speaks on every write
}
