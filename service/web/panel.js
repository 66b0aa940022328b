// The side panel: beside the conversation on a wide window (the page stays usable), a modal bottom sheet on a narrow one.
const narrow = matchMedia("(max-width: 899px)");
const panels = [];

/** Wire a <dialog> as a panel. `closed` is called after it closes. Returns {open(opener), close(), isOpen()}. */
export function createPanel(dialog, focusTarget, closed = () => {}) {
  let opener = null;

  function show() {
    if (narrow.matches) dialog.showModal();
    else dialog.show();
    document.body.dataset.panel = "open";
    focusTarget.focus({ preventScroll: true });
  }

  const panel = {
    dialog,
    isOpen: () => dialog.open,
    open(from) {
      for (const other of panels) if (other !== panel) other.close(false);
      opener = from;
      if (dialog.open) focusTarget.focus({ preventScroll: true });
      else show();
    },
    close(giveFocusBack = true) {
      if (!dialog.open) return;
      dialog.close();
      delete document.body.dataset.panel;
      closed();
      if (giveFocusBack && opener?.isConnected) opener.focus();
    },
  };

  dialog.addEventListener("cancel", (event) => {
    event.preventDefault(); // closing through panel.close keeps the focus rule in one place
    panel.close();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog && narrow.matches) panel.close(); // the backdrop
  });
  narrow.addEventListener("change", () => {
    if (!dialog.open) return;
    dialog.close();
    show();
  });
  panels.push(panel);
  return panel;
}

// A dialog shown beside the page does not close on Escape by itself.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog:modal")) return;
  for (const panel of panels) panel.close();
});
