// What this key may do here and how much, as the service tells it. Until it has told, nothing is offered that may be refused.
import { getJSON } from "./api.js";

let known = { role: "", keys: false, question_chars: 4000, history: 8, body_bytes: 65536, upload_bytes: 0, upload_types: [] };

export const access = () => known;

export const isAdmin = () => known.role === "admin";

/** Read /access again; tells whoever listens for "access". */
export async function loadAccess() {
  known = await getJSON("/access");
  document.dispatchEvent(new Event("access"));
}
