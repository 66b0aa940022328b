// The text of an answer, written as it arrives; [n] becomes a numbered chip.
import { el } from "./dom.js";

const MARKER = /\[(\d{1,3})\]/g;
const UNFINISHED = /\[\d{0,3}$/; // "[1" may become "[1]" with the next token

/**
 * write(text) appends a streamed piece; its markers are shown as numbers that wait for their source.
 * settle(text, citations) shows the final text; a marker with a citation becomes a button that calls open(citation, button).
 */
export function createAnswerText(container, open) {
  let text = "";
  let shown = 0;

  function append(part, chip) {
    let from = 0;
    for (const match of part.matchAll(MARKER)) {
      const text = part.slice(from, match.index).replace(/ $/, "\u00a0"); // a chip stays on the line of its word
      container.append(text, chip(Number(match[1]), match[0]));
      from = match.index + match[0].length;
    }
    if (from < part.length) container.append(part.slice(from));
  }

  return {
    get text() {
      return text;
    },
    write(piece) {
      text += piece;
      const rest = text.slice(shown);
      const safe = rest.slice(0, UNFINISHED.exec(rest)?.index ?? rest.length);
      append(safe, (n) => el("span", { class: "chip waiting" }, String(n)));
      shown += safe.length;
    },
    settle(final, citations) {
      const byNumber = group(citations);
      container.replaceChildren();
      text = final;
      shown = final.length;
      append(final, (n, marker) => {
        const quotes = byNumber.get(n);
        if (!quotes) return marker;
        // One passage may be quoted several times: each marker takes the next of its quotes, in the order of the text.
        const citation = quotes.length > 1 ? quotes.shift() : quotes[0];
        const label = `Source ${n}: ${citation.title || citation.document}`;
        const button = el("button", { class: "chip", type: "button", "aria-label": label, title: label }, String(n));
        button.addEventListener("click", () => open(citation, button));
        return button;
      });
    },
    clear() {
      text = "";
      shown = 0;
      container.replaceChildren();
    },
  };
}

function group(citations) {
  const byNumber = new Map();
  for (const citation of citations) byNumber.set(citation.n, [...(byNumber.get(citation.n) ?? []), citation]);
  return byNumber;
}

/** Give a screen reader whole sentences of a stream, not pieces of words. Returns {write(piece), end()}. */
export function createSpeaker(say) {
  let waiting = "";
  const speak = (sentence) => {
    const spoken = sentence.replace(MARKER, " (source $1)").trim();
    if (spoken) say(spoken);
  };
  return {
    write(piece) {
      waiting += piece;
      for (let end; (end = /[.!?](\s*\[\d{1,3}\])*\s/.exec(waiting)); ) {
        const cut = end.index + end[0].length;
        speak(waiting.slice(0, cut));
        waiting = waiting.slice(cut);
      }
    },
    end() {
      speak(waiting);
      waiting = "";
    },
  };
}
