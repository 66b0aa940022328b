// Example questions: about the manual where it is indexed, otherwise about the person's own documents by title.
import { byId, el } from "./dom.js";

const ABOUT_THE_MANUAL = [
  "How many parameters does the default base model have?",
  "What is the default port?",
  "How many passages does a question get by default?",
];
const MOST = 4;

function questionsFor(documents) {
  if (documents.some(({ document }) => /(^|\/)what-is-tandem\.md$/.test(document))) return ABOUT_THE_MANUAL;
  const titles = new Set(documents.map(({ title }) => title).filter((title) => title && title.length <= 60));
  return [...titles].slice(0, MOST).map((title) => `What does “${title}” say?`);
}

/** Fill the list of examples; `choose(question)` is called with the one that was clicked. */
export function showExamples(documents, choose) {
  const items = questionsFor(documents).map((question) =>
    el("li", {}, el("button", { class: "example", type: "button", onclick: () => choose(question) }, question)),
  );
  byId("examples").replaceChildren(...items);
  byId("empty").hidden = documents.length > 0;
}
