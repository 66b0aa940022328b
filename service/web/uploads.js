// Adding documents: files that are chosen or dropped are sent one after the other, and indexed by the service.
import { access, isAdmin } from "./access.js";
import { getJSON } from "./api.js";
import { byId, el } from "./dom.js";
import { bytes } from "./format.js";
import { watchJob } from "./indexing.js";

const input = byId("files");
const zone = byId("index-panel");
const list = byId("uploads");
let queue = Promise.resolve();

function line(file) {
  const state = el("span", { class: "upload-state" }, "Waiting");
  const item = el("li", { "data-state": "waiting" }, el("span", { class: "path" }, file.name), state);
  list.append(item);
  return (name, text, job = "") => {
    item.dataset.state = name;
    item.dataset.job = job;
    state.textContent = text;
  };
}

async function send(file, groups, tell) {
  const most = access().upload_bytes;
  if (file.size > most) return tell("failed", `Not sent: it has ${bytes(file.size)}, and at most ${bytes(most)} can be uploaded.`);
  tell("sending", `Sending ${bytes(file.size)}`);
  const form = new FormData();
  form.append("file", file);
  if (groups) form.append("groups", groups);
  try {
    const { replaced, job } = await getJSON("/documents", { method: "POST", body: form });
    tell("stored", `${replaced ? "Replaced the one of this name" : "Stored"}. Being indexed.`, job.id);
    // The next file need not wait for the index.
    watchJob(job);
  } catch (failure) {
    tell("failed", ["Not stored:", failure.message, failure.expected, failure.remedy].filter(Boolean).join(" "));
  }
}

function add(files) {
  if (!isAdmin() || files.length === 0) return;
  const groups = byId("upload-groups").value.trim();
  list.replaceChildren(...list.querySelectorAll("[data-state=waiting], [data-state=sending]"));
  for (const file of files) {
    const tell = line(file);
    queue = queue.then(() => send(file, groups, tell));
  }
}

const hasFiles = (event) => isAdmin() && [...event.dataTransfer.types].includes("Files");

function showAccess() {
  const { role, keys, upload_types: types } = access();
  byId("manage").hidden = role !== "admin";
  byId("not-admin").hidden = role !== "user";
  byId("groups-row").hidden = !keys;
  byId("key-row").hidden = !keys;
  byId("key-role").textContent = role === "admin" ? "This tab has an administrator's key." : "This tab has a user's key.";
  if (types.length) input.accept = types.join(",");
}

byId("upload").addEventListener("click", () => input.click());
input.addEventListener("change", () => {
  add([...input.files]);
  input.value = ""; // the same file may be chosen again
});
zone.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  zone.dataset.drop = "";
});
zone.addEventListener("dragleave", (event) => {
  if (!zone.contains(event.relatedTarget)) delete zone.dataset.drop;
});
zone.addEventListener("drop", (event) => {
  delete zone.dataset.drop;
  if (!hasFiles(event)) return;
  event.preventDefault();
  add([...event.dataTransfer.files]);
});
document.addEventListener("job-end", ({ detail: { id, state } }) => {
  for (const item of list.querySelectorAll(`[data-job="${CSS.escape(id)}"]`)) {
    if (state === "done") item.remove();
    else item.lastElementChild.textContent = "Stored, but not indexed yet. Re-index to take it up.";
  }
});
document.addEventListener("access", showAccess);
