// Light or dark: the system's choice until the reader makes one. A classic script in the head, so that the first paint
// already has the right colours.
(() => {
  "use strict";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  function stored() {
    try {
      return localStorage.getItem("tandem.theme");
    } catch {
      return null; // storage may be switched off; the system's choice then stands
    }
  }

  function show(choice) {
    if (choice === "light" || choice === "dark") root.dataset.theme = choice;
    const dark = choice ? choice === "dark" : system.matches;
    root.dataset.shade = dark ? "dark" : "light";
    document.getElementById("theme")?.setAttribute("aria-label", `Switch to the ${dark ? "light" : "dark"} theme`);
  }

  show(stored());
  system.addEventListener("change", () => show(stored()));
  addEventListener("DOMContentLoaded", () => {
    show(stored());
    document.getElementById("theme").addEventListener("click", () => {
      const next = root.dataset.shade === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("tandem.theme", next);
      } catch {
        // the choice then lasts as long as the page
      }
      show(next);
    });
  });
})();
