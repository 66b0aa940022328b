// What an answer rests on: its sources, or the passages that were searched, and what was searched for.
import { el, icon } from "./dom.js";
import { dots, pageOf, score } from "./format.js";

const WHY_REFUSED = {
  nothing_relevant: "Nothing in the documents comes close to this question, so the model was not asked.",
  model_refused: "The model read the passages below and found no answer in them.",
  unsupported: "What the model wrote is not supported by the passages below, so it is not shown.",
};

/** The parts to show under a whole answer. `open(source, opener)` shows a source in its document. */
export function evidence(answer, open) {
  const passages = answer.passages ?? [];
  const parts = [searchedFor(answer)];
  if (answer.refused) {
    const why = WHY_REFUSED[answer.refusal_reason] ?? "Nothing in the documents supports an answer.";
    parts.unshift(el("p", { class: "aside" }, `${passages.length ? why : why.replace(" below", "")} Nothing was made up.`));
    if (passages.length) parts.push(passageList("Passages that were searched", passages, open));
  } else if (answer.citations.length) {
    parts.push(citationList(answer.citations, open));
  } else if (passages.length) {
    parts.push(el("p", { class: "aside" }, "The answer cites no passage. These are the passages it was given."));
    parts.push(passageList("Passages", passages, open));
  } else {
    parts.push(el("p", { class: "aside" }, "Answered by the model alone. No documents were searched, so there is nothing to check it against."));
  }
  return parts.filter(Boolean);
}

/** A refusal says what was searched; an answer only where that was not what was typed. */
function searchedFor({ searched_for: searched, refused, question }) {
  if (!searched || (!refused && searched === question)) return null;
  return el("p", { class: "searched-for" }, "Searched for ", el("q", {}, searched));
}

function citationList(citations, open) {
  return sourceList("Sources", "", citations.map((each) => sourceButton(each.n, each, each.quote, open)));
}

function passageList(title, passages, open) {
  return sourceList(title, "passages", passages.map((each) => sourceButton(each.rank, each, "", open)));
}

function sourceList(title, kind, buttons) {
  const items = buttons.map((button) => el("li", {}, button));
  return el("div", { class: `sources ${kind}`, role: "group", "aria-label": title }, el("h3", {}, title), el("ol", {}, ...items));
}

function sourceButton(number, source, quote, open) {
  const button = el(
    "button",
    { class: "source", type: "button", onclick: () => open(source, button) },
    el("span", { class: "source-number" }, el("span", { class: "sr-only" }, "Source "), String(number)),
    el(
      "span",
      { class: "source-main" },
      el("span", { class: "source-title" }, source.title || source.document),
      quote ? el("span", { class: "source-quote" }, `“${quote}”`) : null,
      el("span", { class: "source-meta" }, el("span", { class: "path" }, source.document), ` · ${dots(pageOf(source.page), `score ${score(source.score)}`)}`),
    ),
    icon("search"),
  );
  return button;
}
