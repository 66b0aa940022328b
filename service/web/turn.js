// One question and its answer: waiting, streaming, answered, refused, stopped or failed.
import { createAnswerText, createSpeaker } from "./answer-text.js";
import { announce, el, icon } from "./dom.js";
import { dots, milliseconds, modeName, pageOf, plural, score } from "./format.js";
import { problem } from "./problem.js";

const CLOSED_BOOK = new Set(["base", "tuned"]);
let count = 0;

/** `open(source, opener)` shows a citation or a passage in its document; `retry()` asks the same question again. */
export function createTurn(question, mode, { open, retry }) {
  const id = `turn-${++count}`;
  const body = el("div", { class: "answer-text", "data-part": "answer" });
  const after = el("div", { class: "answer-after" });
  const waiting = el("p", { class: "waiting-line" }, CLOSED_BOOK.has(mode) ? "Asking the model" : "Searching the documents");
  const card = el("div", { class: "answer", "data-state": "waiting" }, waiting, body, after);
  const element = el(
    "article",
    { class: "turn", "aria-labelledby": id },
    el("h2", { class: "question", id }, question),
    card,
  );
  const text = createAnswerText(body, open);
  let speaker = createSpeaker(announce);

  function setState(state) {
    card.dataset.state = state;
    card.toggleAttribute("aria-busy", state === "waiting" || state === "streaming");
    waiting.hidden = state !== "waiting";
  }

  return {
    element,
    question,
    mode,
    start() {
      text.clear();
      after.replaceChildren();
      speaker = createSpeaker(announce);
      setState("waiting");
      announce("Looking for an answer.");
    },
    write(piece) {
      setState("streaming");
      text.write(piece);
      speaker.write(piece);
    },
    cite(citations) {
      text.settle(text.text, citations);
    },
    finish(answer) {
      text.settle(answer.answer, answer.refused ? [] : answer.citations);
      speaker.end();
      setState(answer.refused ? "refused" : "answered");
      after.replaceChildren(...afterwards(answer, open));
      announce(answer.refused ? "The documents do not say." : `Answer complete, ${plural(answer.citations.length, "source")}.`);
    },
    stopped() {
      text.settle(text.text, []);
      speaker.end();
      setState("stopped");
      after.replaceChildren(el("p", { class: "aside" }, "Stopped. ", el("button", { class: "link", type: "button", onclick: retry }, "Ask again")));
      announce("Stopped.");
    },
    failed(failure) {
      setState("failed");
      after.replaceChildren(problem(failure, retry));
    },
  };
}

function afterwards(answer, open) {
  const parts = [];
  const passages = answer.passages ?? [];
  if (answer.refused) {
    parts.push(el("p", { class: "aside" }, refusalNote(passages)));
    if (passages.length) parts.push(passageList("Passages that were searched", passages, open));
  } else if (answer.citations.length) {
    parts.push(citationList(answer.citations, open));
  } else if (passages.length) {
    parts.push(el("p", { class: "aside" }, "The answer cites no passage. These are the passages it was given."));
    parts.push(passageList("Passages", passages, open));
  } else {
    parts.push(el("p", { class: "aside" }, "Answered by the model alone. No documents were searched, so there is nothing to check it against."));
  }
  parts.push(facts(answer));
  return parts;
}

function refusalNote(passages) {
  return passages.length
    ? "Nothing in the documents supports an answer, so none was made up. The closest passages are below."
    : "Nothing in the documents comes close to this question, so no answer was made up.";
}

function citationList(citations, open) {
  const items = citations.map((citation) => {
    const button = sourceButton(citation.n, citation, citation.quote, () => open(citation, button));
    return el("li", {}, button);
  });
  return el("section", { class: "sources", "aria-label": "Sources" }, el("h3", {}, "Sources"), el("ol", {}, ...items));
}

function passageList(title, passages, open) {
  const items = passages.map((passage) => {
    const button = sourceButton(passage.rank, passage, "", () => open(passage, button));
    return el("li", {}, button);
  });
  return el("section", { class: "sources passages", "aria-label": title }, el("h3", {}, title), el("ol", {}, ...items));
}

function sourceButton(number, source, quote, onclick) {
  return el(
    "button",
    { class: "source", type: "button", onclick },
    el("span", { class: "source-number", "aria-hidden": "true" }, String(number)),
    el(
      "span",
      { class: "source-main" },
      el("span", { class: "source-title" }, source.title || source.document),
      quote ? el("span", { class: "source-quote" }, `“${quote}”`) : null,
      el("span", { class: "source-meta" }, el("span", { class: "path" }, source.document), ` · ${dots(pageOf(source.page), `score ${score(source.score)}`)}`),
    ),
    icon("search"),
  );
}

function facts(answer) {
  const usage = answer.usage ?? {};
  const times = answer.timings_ms ?? {};
  const first = milliseconds(times.first_token);
  const total = milliseconds(times.total);
  const lines = [
    modeName(answer.mode),
    answer.adapter ? `adapter ${answer.adapter}` : "no adapter",
    first && `first token ${first}`,
    total && `total ${total}`,
    Number.isFinite(usage.prompt_tokens) && `${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out`,
    Number.isFinite(answer.index_generation) && `index generation ${answer.index_generation}`,
    answer.finish_reason === "length" && "cut at the token limit",
  ].filter(Boolean);
  return el("ul", { class: "facts", "aria-label": "About this answer" }, ...lines.map((line) => el("li", {}, line)));
}
