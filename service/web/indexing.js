// Index jobs: started here or found under way, followed to their end, and cancelled.
import { getJSON } from "./api.js";
import { byId } from "./dom.js";
import { cancelJob, createJobView, follow, isFinal, percent } from "./job.js";
import { problem } from "./problem.js";

const trouble = byId("index-problem");
const button = byId("reindex");
const showJob = createJobView(byId("job"), () => current && cancelJob(current).catch(complain));

let current = null; // the last known state of the job that is followed
let watching = null; // settles when nothing is left to follow
let next = null; // a job that waits behind it

const complain = (failure) => trouble.replaceChildren(problem(failure, null));

function badge(job) {
  const share = percent(job);
  byId("open-index-text").textContent = isFinal(job) ? "Documents" : share === null ? "Indexing" : `Indexing ${share} %`;
}

function show(job) {
  current = job;
  showJob(job);
  badge(job);
}

async function followAll() {
  try {
    while (next) {
      const job = next;
      next = null;
      const last = await follow(job, show);
      document.dispatchEvent(new CustomEvent("job-end", { detail: last }));
    }
  } catch (failure) {
    complain(failure);
  } finally {
    current = watching = next = null;
    button.disabled = false;
    byId("open-index-text").textContent = "Documents";
  }
}

/** Follow a job to its end, after the one that is followed already. */
export function watchJob(job) {
  if (current?.id !== job.id) next = job;
  button.disabled = true;
  return (watching ??= followAll());
}

/** Show the last job, and follow it if it is still under way. */
export async function findJob() {
  const { jobs } = await getJSON("/jobs");
  const [newest] = jobs;
  if (!newest || watching) return;
  if (isFinal(newest)) return showJob(newest);
  watchJob(jobs.find(({ state }) => state === "running") ?? newest);
  if (newest.state === "queued") watchJob(newest);
}

async function reindex() {
  trouble.replaceChildren();
  button.disabled = true;
  try {
    const { job } = await getJSON("/reindex", { method: "POST", body: {} });
    await watchJob(job);
  } catch (failure) {
    trouble.replaceChildren(problem(failure, reindex));
    button.disabled = watching !== null;
  }
}

button.addEventListener("click", reindex);
