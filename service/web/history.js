// The turns before a question, as they are sent with it: the last ones, as many as fit.

const encoder = new TextEncoder();
const ROOM = 1024; // bytes of a request beside its question and its history

/**
 * Messages, oldest first, from [{question, said}]: the last `most`, each cut to `characters`, together with the question
 * in less than `bytes` of JSON. A turn without an answer is left out.
 */
export function historyOf(turns, question, { most, characters, bytes }) {
  const messages = [];
  const cut = (text) => Array.from(text).slice(0, characters).join("");
  let left = bytes - ROOM - size(question);
  for (const turn of [...turns].reverse()) {
    const answer = turn.said();
    if (answer === null) continue;
    const both = [
      { role: "user", content: cut(turn.question) },
      { role: "assistant", content: cut(answer) },
    ];
    left -= size(both);
    if (left < 0 || messages.length + both.length > most) break;
    messages.unshift(...both);
  }
  return messages;
}

const size = (value) => encoder.encode(JSON.stringify(value)).length;
