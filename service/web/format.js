// Numbers and words as people read them.

export const MODE_NAMES = { auto: "Auto", rag: "RAG", "rag+tuned": "RAG + tuned", tuned: "Tuned", base: "Base" };

export const MODE_EXPLANATIONS = {
  auto: "Chooses the mode for you.",
  rag: "Finds passages first, then answers from them and cites them.",
  "rag+tuned": "Finds passages, then answers from them with a tuned adapter.",
  tuned: "The adapter answers from what it learned. No passages, so no sources.",
  base: "The base model answers from memory. No passages, so no sources.",
};

export const modeName = (mode) => MODE_NAMES[mode] ?? String(mode);

export function plural(count, noun) {
  return `${Number(count).toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

export function milliseconds(value) {
  if (!Number.isFinite(value)) return null;
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(value < 10000 ? 1 : 0)} s`;
}

export function timeLeft(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 1) return "almost done";
  if (seconds < 90) return `about ${Math.round(seconds)} s left`;
  return `about ${Math.round(seconds / 60)} min left`;
}

/** Bytes in the unit that people read: 47.7 MB. */
export function bytes(count) {
  const power = Math.min(3, Math.floor(Math.log10(Math.max(1, count)) / 3));
  return `${(count / 1000 ** power).toLocaleString("en", { maximumFractionDigits: power ? 1 : 0 })} ${["bytes", "kB", "MB", "GB"][power]}`;
}

/** Scores are cosines (0 to 1) or fused ranks (around 0.03): two significant digits suit both. */
export function score(value) {
  return Number.isFinite(value) ? (Math.abs(value) < 0.1 ? value.toPrecision(2) : value.toFixed(2)) : "";
}

export function pageOf(page) {
  return page === null || page === undefined ? "" : `page ${page}`;
}

/** Join the parts that exist: "guide.md · page 3". */
export const dots = (...parts) => parts.filter(Boolean).join(" · ");
