// Whether the server can answer: asks /readyz until it can, and now and then afterwards.
import { byId } from "./dom.js";

const UNTIL_READY = 1500; // ms
const WHEN_READY = 20000; // ms

let timer = 0;
let tell = () => {};

async function look() {
  try {
    const response = await fetch("/readyz", { cache: "no-store" });
    const body = await response.json();
    if (response.ok) return { state: "ready", generation: body.generation };
    return { state: "loading", reason: body.reason ?? body.error?.message ?? "The server is starting." };
  } catch {
    return { state: "offline", reason: "The server cannot be reached. Trying again." };
  }
}

/** Look now, then keep looking. */
export async function checkNow() {
  clearTimeout(timer);
  const found = await look();
  clearTimeout(timer); // another look may have begun meanwhile
  timer = setTimeout(checkNow, found.state === "ready" ? WHEN_READY : UNTIL_READY);
  tell(found);
}

/** `listener({state: "ready" | "loading" | "offline", reason?, generation?})` on every look. */
export function watchReadiness(listener) {
  tell = listener;
  addEventListener("online", checkNow);
  addEventListener("offline", checkNow);
  return checkNow();
}

export function showStatus(state, text) {
  byId("status").dataset.state = state;
  const line = byId("status-text");
  if (line.textContent !== text) line.textContent = text;
}
