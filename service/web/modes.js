// The mode switch: which half answers. A mode that cannot be used stays visible, with its reason.
import { chosenAdapter, onAdapterChange } from "./adapters.js";
import { getJSON } from "./api.js";
import { isComparing, offerPairs, onCompareChange, pair } from "./compare.js";
import { byId, el } from "./dom.js";
import { MODE_EXPLANATIONS, MODE_NAMES, modeName } from "./format.js";

const options = byId("mode-options");
const hint = byId("mode-hint");
let explain = {};
let told = { modes: [], default: "auto" };

const selectedMode = () => options.querySelector("input:checked")?.value ?? "auto";

/** The mode to ask in, or two of them side by side. */
export const selectedModes = () => (isComparing() ? pair() : [selectedMode()]);

function showHint(mode = selectedMode()) {
  hint.textContent = isComparing() ? "Both modes answer, one after the other, so that their times can be compared." : (explain[mode] ?? "");
}

function explanation({ name, available, reason, answers_as: chosen }) {
  if (!available) return `${modeName(name)} is not available: ${reason || "not ready"}`;
  const text = MODE_EXPLANATIONS[name] ?? "";
  return name === "auto" && chosen ? `Now ${modeName(chosen)}: ${lowerFirst(MODE_EXPLANATIONS[chosen] ?? "")}` : text;
}

const lowerFirst = (text) => text.charAt(0).toLowerCase() + text.slice(1);

function option(mode, selected) {
  const { name, available, reason } = mode;
  const text = explanation(mode);
  explain[name] = text;
  const input = el("input", { type: "radio", name: "mode", value: name, disabled: !available, checked: name === selected });
  const label = el("label", { class: "mode", title: text }, input, el("span", {}, modeName(name)));
  if (!available) label.append(el("span", { class: "sr-only" }, `, not available: ${reason}`));
  input.addEventListener("change", () => showHint());
  label.addEventListener("pointerenter", () => showHint(name));
  label.addEventListener("pointerleave", () => showHint());
  label.addEventListener("click", () => showHint(name)); // a tap on a disabled mode shows why
  return label;
}

/** An adapter that was chosen here makes up for one that is not active, and auto then answers with it. */
function withChoice(mode) {
  if (!chosenAdapter()) return mode;
  if (mode.name === "auto") return { ...mode, available: true, answers_as: "rag+tuned" };
  return mode.name.includes("tuned") ? { ...mode, available: true } : mode;
}

function draw() {
  const known = Object.keys(MODE_NAMES);
  const order = (name) => (known.indexOf(name) + known.length + 1) % (known.length + 1); // unknown names last
  const modes = told.modes.map(withChoice).sort((a, b) => order(a.name) - order(b.name));
  const usable = (name) => modes.some((mode) => mode.name === name && mode.available);
  const chosen = options.querySelector("input:checked")?.value;
  const selected = usable(chosen) ? chosen : usable(told.default) ? told.default : modes.find((mode) => mode.available)?.name;
  explain = {};
  options.replaceChildren(...modes.map((mode) => option(mode, selected)));
  offerPairs(modes);
  showHint();
}

/** Read /modes and draw the switch; keeps the person's choice if it is still there. */
export async function loadModes() {
  told = await getJSON("/modes");
  draw();
}

onAdapterChange(draw);
onCompareChange(() => showHint());
