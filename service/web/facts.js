// What an answer took, and what two answers took against each other.
import { el } from "./dom.js";
import { milliseconds, modeName, plural } from "./format.js";

/** A list of what is known about one answer. */
export function facts(answer) {
  const usage = answer.usage ?? {};
  const times = answer.timings_ms ?? {};
  const first = milliseconds(times.first_token);
  const total = milliseconds(times.total);
  const lines = [
    modeName(answer.mode),
    answer.adapter ? `adapter ${answer.adapter}` : "no adapter",
    !answer.refused && plural(answer.citations.length, "citation"),
    first && `first token ${first}`,
    total && `total ${total}`,
    Number.isFinite(usage.prompt_tokens) && `${usage.prompt_tokens.toLocaleString("en")} tokens in, ${usage.completion_tokens.toLocaleString("en")} out`,
    Number.isFinite(answer.index_generation) && `index generation ${answer.index_generation}`,
    answer.finish_reason === "length" && "cut at the token limit",
  ].filter(Boolean);
  return el("ul", { class: "facts", "aria-label": "About this answer" }, ...lines.map((line) => el("li", {}, line)));
}

const ROWS = [
  ["Citations", (answer) => (answer.refused ? "refused" : String(answer.citations.length))],
  ["Tokens in", (answer) => answer.usage.prompt_tokens.toLocaleString("en")],
  ["Tokens out", (answer) => answer.usage.completion_tokens.toLocaleString("en")],
  ["Retrieval", (answer) => (answer.searched_for === null ? "none" : milliseconds(answer.timings_ms.retrieve) ?? "none")],
  ["First token", (answer) => milliseconds(answer.timings_ms.first_token) ?? "none"],
  ["Total", (answer) => milliseconds(answer.timings_ms.total) ?? "none"],
];

/** A table of what two answers to the same question took. */
export function tradeoff(left, right) {
  const head = (answer) => el("th", { scope: "col" }, modeName(answer.mode));
  const rows = ROWS.map(([name, cell]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, cell(left)), el("td", {}, cell(right))));
  return el(
    "table",
    { class: "tradeoff" },
    el("caption", {}, "What each answer took"),
    el("thead", {}, el("tr", {}, el("td", {}), head(left), head(right))),
    el("tbody", {}, ...rows),
  );
}
