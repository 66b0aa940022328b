// What the reader thought of an answer: a thumb, and for a bad one the answer that would have been right.
import { getJSON } from "./api.js";
import { announce, el, icon } from "./dom.js";
import { problem } from "./problem.js";

const ANSWER_CHARACTERS = 20000;
const COMMENT_CHARACTERS = 4000;
let count = 0;

/** A row of two thumbs for one whole answer; `requestId` lets the operator find it in the log. */
export function createFeedback(answer, requestId) {
  const trouble = el("div", {});
  const more = el("div", {});
  const up = thumb("up", "Good answer", () => send({ vote: "up" }, up));
  const down = thumb("down", "Bad answer", () => (more.childElementCount ? close() : explain()));
  const row = el("div", { class: "feedback" }, el("div", { class: "thumbs", role: "group", "aria-label": "Was this answer right?" }, up, down), more, trouble);

  function close() {
    more.replaceChildren();
    down.setAttribute("aria-expanded", "false");
    down.focus();
  }

  function explain() {
    const form = correction(close, (values) => send({ vote: "down", ...values }, form.querySelector("[type=submit]")));
    down.setAttribute("aria-expanded", "true");
    more.replaceChildren(form);
    form.querySelector("textarea").focus();
    form.scrollIntoView({ block: "nearest" });
  }

  async function send(opinion, button) {
    button.disabled = true;
    trouble.replaceChildren();
    try {
      await getJSON("/feedback", { method: "POST", body: { ...about(answer, requestId), ...opinion } });
      const thanks = el("p", { class: "thanks", tabindex: "-1" }, "Thank you, your opinion is kept.");
      row.replaceChildren(thanks);
      thanks.focus({ preventScroll: true });
    } catch (failure) {
      button.disabled = false;
      trouble.replaceChildren(problem(failure, () => send(opinion, button)));
      announce("Your opinion could not be kept.");
    }
  }

  down.setAttribute("aria-expanded", "false");
  return row;
}

function thumb(direction, label, onclick) {
  return el("button", { class: "button quiet icon thumb", type: "button", "aria-label": label, title: label, onclick }, icon(direction));
}

function about(answer, requestId) {
  const cut = (text, most) => Array.from(text ?? "").slice(0, most).join("");
  return {
    question: answer.question,
    answer: cut(answer.answer, ANSWER_CHARACTERS),
    mode: answer.mode,
    adapter: answer.adapter,
    documents: [...new Set(answer.passages.map(({ document }) => document))].slice(0, 100),
    citations: answer.citations.slice(0, 100).map(({ n, document, chunk, quote }) => ({ n, document, chunk, quote })),
    request_id: requestId,
  };
}

function correction(cancel, submit) {
  const id = `feedback-${++count}`;
  const right = el("textarea", { id: `${id}-answer`, rows: 3, maxlength: ANSWER_CHARACTERS });
  const comment = el("textarea", { id: `${id}-comment`, rows: 2, maxlength: COMMENT_CHARACTERS });
  const form = el(
    "form",
    { class: "correction", autocomplete: "off" },
    el("label", { for: right.id }, "The right answer"),
    right,
    el("label", { for: comment.id }, "What is wrong with this one"),
    comment,
    el("p", { class: "note" }, "Both may be left empty. An administrator can read them."),
    el(
      "div",
      { class: "actions" },
      el("button", { class: "button quiet", type: "button", onclick: cancel }, "Cancel"),
      el("button", { class: "button accent", type: "submit" }, "Send"),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit({ corrected_answer: right.value.trim(), comment: comment.value.trim() });
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation(); // it would close a panel too
    cancel();
  });
  return form;
}
