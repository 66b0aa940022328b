// Requests to the service: the key, the one error shape, and server-sent events read from fetch (EventSource cannot send
// an Authorization header).
import { askForKey, currentKey } from "./key.js";

/** What went wrong, in the service's own three parts: message, expected, do. */
export class Failure extends Error {
  constructor({ code = "error", message = "Something went wrong.", expected = "", do: remedy = "", request_id = "" } = {}, wait = null) {
    super(message);
    this.code = code;
    this.expected = expected;
    this.remedy = remedy;
    this.requestId = request_id;
    this.wait = wait; // seconds after which it may be tried again, where the service said so
  }
}

export function unreachable(message = "The server cannot be reached.") {
  return new Failure({ code: "network", message, do: "Check that it is running and that you are connected, then try again." });
}

async function failureOf(response) {
  const wait = Number(response.headers.get("Retry-After")) || null;
  try {
    const body = await response.json();
    if (body?.error?.message) return new Failure(body.error, wait);
  } catch {
    // a proxy's own error page: the status is all there is
  }
  return new Failure({ code: String(response.status), message: `The server answered with status ${response.status}.` });
}

/** Fetch `path`; asks for a key on 401 and tries again. Raises Failure, or AbortError when `signal` is aborted. */
export async function request(path, { method = "GET", body, signal, accept = "application/json" } = {}) {
  for (;;) {
    const key = currentKey();
    const headers = { Accept: accept };
    if (key) headers.Authorization = `Bearer ${key}`;
    const isForm = body instanceof FormData; // the browser writes its header, with the boundary
    if (body !== undefined && !isForm) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers, signal, cache: "no-store", body: isForm ? body : body && JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw unreachable();
    }
    if (response.ok) return response;
    if (response.status !== 401 || !(await askForKey(key))) throw await failureOf(response);
  }
}

export async function getJSON(path, options) {
  return (await request(path, options)).json();
}

/** Yield {name, data} for every server-sent event of a response; comment lines (heartbeats) are skipped. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      // A chunk may end between \r and \n: the lone \r waits for its partner.
      buffer = (buffer + value).replace(/\r\n/g, "\n");
      let end;
      while ((end = buffer.indexOf("\n\n")) >= 0) {
        const event = parse(buffer.slice(0, end));
        buffer = buffer.slice(end + 2);
        if (event) yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Failure) throw error;
    throw unreachable("The connection was lost.");
  } finally {
    reader.cancel().catch(() => {}); // leaving early tells the server to stop
  }
}

function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue; // a comment, or a line with no value
    const field = line.slice(0, colon);
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") name = value;
    else if (field === "data") data.push(value);
  }
  if (data.length === 0) return null;
  try {
    return { name, data: JSON.parse(data.join("\n")) };
  } catch {
    throw new Failure({ message: "The server sent an event that cannot be read.", do: "Try again." });
  }
}
