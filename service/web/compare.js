// Side by side: whether two modes answer each question, and which two.
import { byId, el } from "./dom.js";
import { MODE_NAMES, modeName } from "./format.js";

const toggle = byId("compare");
const selects = [byId("pair-left"), byId("pair-right")];
// The pairs that show most, best first: what tuning adds to retrieval, then what retrieval adds to the model.
const PAIRS = [["rag", "rag+tuned"], ["base", "rag"], ["base", "tuned"]];
let listener = () => {};

export const isComparing = () => toggle.getAttribute("aria-pressed") === "true";

/** The two modes, left and right. */
export const pair = () => selects.map((select) => select.value);

function show(comparing) {
  toggle.setAttribute("aria-pressed", String(comparing));
  byId("modes").hidden = comparing;
  byId("pair").hidden = !comparing;
  listener();
}

/** Offer these modes ({name, available}); keeps the person's choice where it can still be used. */
export function offerPairs(modes) {
  const offered = modes.filter(({ name }) => name !== "auto" && name in MODE_NAMES);
  const usable = new Set(offered.filter(({ available }) => available).map(({ name }) => name));
  const preset = PAIRS.find((each) => each.every((name) => usable.has(name))) ?? [...usable];
  const before = pair();
  const kept = before.every((name) => usable.has(name)) ? before : preset;
  selects.forEach((select, side) => {
    const options = offered.map(({ name, available }) =>
      el("option", { value: name, disabled: !available }, available ? modeName(name) : `${modeName(name)} (not available)`),
    );
    select.replaceChildren(...options);
    select.value = kept[side] ?? "";
  });
  toggle.disabled = usable.size < 2;
  toggle.title = toggle.disabled ? "Two modes must be available to compare them." : "";
  if (toggle.disabled && isComparing()) show(false);
}

/** Call `changed()` when comparing is switched or another mode is chosen. */
export function onCompareChange(changed) {
  listener = changed;
}

toggle.addEventListener("click", () => show(!isComparing()));
selects.forEach((select, side) =>
  select.addEventListener("change", () => {
    const other = selects[1 - side];
    // The same mode twice shows nothing: the other side moves on to the next one.
    if (other.value === select.value) other.value = [...other.options].find((each) => !each.disabled && each.value !== select.value).value;
    listener();
  }),
);
