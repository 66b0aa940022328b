// The source panel: a passage in its document, with the quoted span marked.
import { request, getJSON } from "./api.js";
import { byId, el } from "./dom.js";
import { dots, pageOf } from "./format.js";
import { currentKey } from "./key.js";
import { createPanel } from "./panel.js";
import { problem } from "./problem.js";

const title = byId("source-title");
const body = byId("source-body");
const link = byId("source-link");
let pressed = null;
let loading = null;

const panel = createPanel(byId("source-panel"), title, () => {
  loading?.abort();
  press(null);
});

function press(opener) {
  pressed?.removeAttribute("aria-current");
  pressed = opener;
  pressed?.setAttribute("aria-current", "true");
}

function addressOf(source) {
  const query = source.quote ? `?start=${source.start}&end=${source.end}` : "";
  return `/sources/${encodeURIComponent(source.chunk)}${query}`;
}

/** Offsets count characters as Python does (code points); a JavaScript string counts UTF-16 units. */
function cut(text, start, end) {
  const points = Array.from(text);
  return [points.slice(0, start).join(""), points.slice(start, end).join(""), points.slice(end).join("")];
}

/** Show a citation (has a quote) or a whole passage. `opener` gets the focus back when the panel closes. */
export async function openSource(source, opener) {
  const number = source.n ?? source.rank;
  byId("source-eyebrow").textContent = source.n ? `Source ${number}` : `Passage ${number}`;
  title.textContent = source.title || source.document;
  byId("source-meta").textContent = dots(source.document, pageOf(source.page));
  link.href = `${addressOf(source)}#${source.quote ? "quote" : "passage"}`;
  body.replaceChildren(el("p", { class: "loading" }, "Opening the document"));
  loading?.abort();
  loading = new AbortController();
  const { signal } = loading;
  press(null);
  panel.open(opener);
  press(opener);
  try {
    const place = await getJSON(addressOf(source), { signal });
    if (!signal.aborted) show(place);
  } catch (failure) {
    if (signal.aborted || failure.name === "AbortError") return;
    body.replaceChildren(problem(failure, () => openSource(source, opener)));
    if (source.quote) body.append(el("p", { class: "eyebrow" }, "Quoted in the answer"), el("p", { class: "reading" }, el("mark", {}, source.quote)));
  }
}

function show(place) {
  title.textContent = place.title || place.document;
  byId("source-meta").textContent = dots(place.document, pageOf(place.page));
  const quoted = Number.isInteger(place.quote_start) && Number.isInteger(place.quote_end);
  const [head, quote, tail] = quoted ? cut(place.text, place.quote_start, place.quote_end) : ["", place.text, ""];
  const mark = el("mark", { id: "panel-quote" }, quote);
  const context = Array.isArray(place.context) ? place.context.join(" › ") : place.context;
  body.replaceChildren();
  if (context) body.append(el("p", { class: "context" }, context));
  body.append(
    el(
      "p",
      { class: "reading" },
      el("span", { class: "around" }, place.before ?? ""),
      el("span", { class: "passage" }, head, mark, tail),
      el("span", { class: "around" }, place.after ?? ""),
    ),
  );
  // Only the panel scrolls; scrollIntoView would move the page under it too.
  const gap = mark.getBoundingClientRect().top - body.getBoundingClientRect().top;
  body.scrollTop = Math.max(0, gap - body.clientHeight / 3);
}

/** A link cannot send a key. With one, the page is fetched here and shown in the new tab, under this page's policy. */
async function openWithKey(event) {
  if (!currentKey()) return;
  event.preventDefault();
  const tab = window.open("about:blank", "_blank");
  if (!tab) return;
  try {
    const response = await request(link.getAttribute("href"), { accept: "text/html" });
    const parsed = new DOMParser().parseFromString(await response.text(), "text/html");
    tab.document.replaceChild(tab.document.importNode(parsed.documentElement, true), tab.document.documentElement);
    const quote = tab.document.getElementById("quote") ?? tab.document.getElementById("passage");
    const styles = [...tab.document.querySelectorAll("link[rel=stylesheet]")];
    await Promise.all(styles.map((style) => style.sheet ?? new Promise((done) => (style.onload = style.onerror = done))));
    quote?.scrollIntoView({ block: "center" });
  } catch (failure) {
    tab.close();
    body.prepend(problem(failure, null));
  }
}

link.addEventListener("click", openWithKey);
byId("source-close").addEventListener("click", () => panel.close());
export const closeSource = () => panel.close(false);
