// The mode switch: which half answers. A mode that cannot be used stays visible, with its reason.
import { getJSON } from "./api.js";
import { byId, el } from "./dom.js";
import { MODE_EXPLANATIONS, MODE_NAMES, modeName } from "./format.js";

const options = byId("mode-options");
const hint = byId("mode-hint");
let explain = {};

export function selectedMode() {
  return options.querySelector("input:checked")?.value ?? "auto";
}

function showHint(mode = selectedMode()) {
  hint.textContent = explain[mode] ?? "";
}

function explanation({ name, available, reason, answers_as: chosen }) {
  if (!available) return `${modeName(name)} is not available: ${reason || "not ready"}`;
  const text = MODE_EXPLANATIONS[name] ?? "";
  return name === "auto" && chosen ? `${text} Now ${modeName(chosen)}: ${lowerFirst(MODE_EXPLANATIONS[chosen] ?? "")}` : text;
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

/** Read /modes and draw the switch; keeps the person's choice if it is still there. */
export async function loadModes() {
  const { modes, default: preset } = await getJSON("/modes");
  const known = Object.keys(MODE_NAMES);
  const order = (name) => (known.indexOf(name) + known.length + 1) % (known.length + 1); // unknown names last
  const sorted = [...modes].sort((a, b) => order(a.name) - order(b.name));
  const usable = (name) => sorted.some((mode) => mode.name === name && mode.available);
  const chosen = options.querySelector("input:checked")?.value;
  const selected = usable(chosen) ? chosen : usable(preset) ? preset : sorted.find((mode) => mode.available)?.name;
  explain = {};
  options.replaceChildren(...sorted.map((mode) => option(mode, selected)));
  showHint();
}
