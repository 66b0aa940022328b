// Which adapter answers in the tuned modes: the active one, or one chosen here for the questions of this tab.
import { getJSON } from "./api.js";
import { byId, el } from "./dom.js";

const select = byId("adapter");
const USES_ADAPTER = new Set(["auto", "tuned", "rag+tuned"]);

/** The adapter that was chosen; "" leaves the choice to the service. */
export const chosenAdapter = () => select.value;

/** The adapter to name in a question of this mode; null where it uses none, or the active one. */
export const adapterFor = (mode) => (USES_ADAPTER.has(mode) && select.value) || null;

/** Read /adapters and fill the list, which is hidden while there is nothing to choose. Keeps the choice if it is still there. */
export async function loadAdapters() {
  const { adapters, active } = await getJSON("/adapters");
  const kept = adapters.some(({ name }) => name === select.value) ? select.value : "";
  const options = adapters.map(({ name, stale }) => el("option", { value: name }, stale ? `${name} (stale)` : name));
  select.replaceChildren(el("option", { value: "" }, active ? `Active: ${active}` : "None active"), ...options);
  select.value = kept;
  byId("adapter-row").hidden = adapters.length === 0;
}

/** Call `listener()` whenever another adapter is chosen. */
export const onAdapterChange = (listener) => select.addEventListener("change", listener);
