// Elements from text, never from markup: a string given here always ends up as a text node or an attribute.

export const byId = (id) => document.getElementById(id);

/** Make an element. `attributes` are set as attributes; `onclick` and its like must be functions; null and false are left out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

const announcer = byId("announcer");

/** Say something to a screen reader without moving focus. */
export function announce(text) {
  announcer.append(el("p", {}, text));
  while (announcer.childElementCount > 12) announcer.firstElementChild.remove();
}
