// The access key: asked for on a 401, kept in sessionStorage (this tab, until it closes).
import { byId } from "./dom.js";

const NAME = "tandem.key";
const dialog = byId("key-dialog");
const input = byId("key");
let asking = null;

export const currentKey = () => sessionStorage.getItem(NAME) ?? "";

/** Forget the key and everything that was shown with it. */
export function forgetKey() {
  sessionStorage.removeItem(NAME);
  location.reload();
}

/** Let the person enter another key than the one there is. */
export const changeKey = () => askForKey(currentKey(), true);

/** Ask the person for a key. Resolves to true when there is one to try, false when they declined. */
export function askForKey(rejected, isWanted = false) {
  if (currentKey() !== rejected) return Promise.resolve(true); // another request has just been given one
  asking ??= show(rejected && !isWanted).finally(() => {
    asking = null;
  });
  return asking;
}

function show(isRejected) {
  byId("key-problem").hidden = !isRejected;
  input.value = "";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
  });
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = input.value.trim();
  if (!key) return;
  sessionStorage.setItem(NAME, key);
  input.value = "";
  dialog.close("given");
  document.dispatchEvent(new Event("key-change"));
});
byId("key-cancel").addEventListener("click", () => dialog.close(""));
dialog.addEventListener("cancel", () => {
  dialog.returnValue = ""; // Escape keeps the last value otherwise
});
