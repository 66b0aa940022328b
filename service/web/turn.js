// One question with its answer, or with two answers side by side and what each of them took.
import { createAnswer } from "./answer.js";
import { el } from "./dom.js";
import { tradeoff } from "./facts.js";

let count = 0;

/** `modes` are one or two. `open(source, opener)` shows a source; `retry()` asks the whole turn again. */
export function createTurn(question, modes, { open, retry }) {
  const id = `turn-${++count}`;
  const answers = modes.map((mode) => createAnswer({ question, mode, named: modes.length > 1, open, retry }));
  const below = el("div", {});
  const element = el(
    "article",
    { class: "turn", "aria-labelledby": id, "data-answers": modes.length },
    el("h2", { class: "question", id }, question),
    el("div", { class: "answers" }, ...answers.map((answer) => answer.element)),
    below,
  );

  return {
    element,
    question,
    /** What the conversation holds of this turn: the first answer that there is; null without one. */
    said: () => answers.map(({ result }) => result).find(Boolean)?.answer ?? null,
    /** One after the other: together they would share the model, and neither's time would be its own. */
    async run(history, signal, progress) {
      below.replaceChildren();
      for (const answer of answers) answer.hold();
      for (const answer of answers) await answer.run(history, signal, progress);
      const results = answers.map(({ result }) => result);
      if (results.length > 1 && results.every(Boolean)) below.replaceChildren(tradeoff(...results));
    },
  };
}
