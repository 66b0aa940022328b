// The conversation: its turns, kept in the memory of this tab alone, and the one question that is being answered.
import { access } from "./access.js";
import { byId } from "./dom.js";
import { historyOf } from "./history.js";
import { closeSource, openSource } from "./source.js";
import { createTurn } from "./turn.js";

const conversation = byId("conversation");
let turns = [];
let running = null; // the AbortController of the answer that is being written
let changed = () => {};

export const isRunning = () => running !== null;
export const isEmpty = () => turns.length === 0;
export const stop = () => running?.abort();

/** Call `listener()` when a question begins or ends, and when the conversation is emptied. */
export function onChatChange(listener) {
  changed = listener;
}

function followStream() {
  const below = document.documentElement.scrollHeight - innerHeight - scrollY;
  if (below < 160) scrollTo({ top: document.documentElement.scrollHeight });
}

function historyBefore(turn) {
  const { history: most, question_chars: characters, body_bytes: bytes } = access();
  return historyOf(turns.slice(0, turns.indexOf(turn)), turn.question, { most, characters, bytes });
}

async function run(turn) {
  if (running) return;
  const mine = new AbortController();
  running = mine;
  changed();
  turn.element.scrollIntoView({ block: "start" });
  await turn.run(historyBefore(turn), mine.signal, followStream);
  if (running !== mine) return; // a new conversation has begun meanwhile
  running = null;
  changed();
}

/** Ask in one mode, or in two side by side. */
export function ask(question, modes) {
  if (running) return;
  const turn = createTurn(question, modes, { open: openSource, retry: () => run(turn) });
  turns.push(turn);
  conversation.append(turn.element);
  run(turn);
}

export function startOver() {
  running?.abort();
  running = null;
  turns = [];
  closeSource();
  conversation.replaceChildren();
  changed();
}
