// An error as a calm block: what happened, what was expected, what to do, and a way on.
import { el, icon } from "./dom.js";
import { askForKey, currentKey } from "./key.js";

/** `retry` is called on "Try again", and after another key was given for a request that this key may not make. */
export function problem(failure, retry) {
  const known = typeof failure.remedy === "string";
  const actions = el("div", { class: "problem-actions" });
  if (failure.code === "forbidden") {
    const other = async () => {
      if (await askForKey(currentKey())) retry?.();
    };
    actions.append(el("button", { class: "button", type: "button", onclick: other }, "Use another key"));
  }
  if (retry) actions.append(el("button", { class: "button", type: "button", onclick: retry }, "Try again"));
  return el(
    "div",
    { class: "problem", role: "alert" },
    icon("alert"),
    el(
      "div",
      {},
      el("p", { class: "problem-message" }, known ? failure.message : "The page could not go on."),
      failure.expected ? el("p", {}, failure.expected) : null,
      failure.remedy ? el("p", {}, failure.remedy) : null,
      failure.wait ? el("p", {}, `It can be tried again in ${failure.wait} s.`) : null,
      failure.requestId ? el("p", { class: "problem-id" }, `Request ${failure.requestId}`) : null,
      actions.childElementCount ? actions : null,
    ),
  );
}
