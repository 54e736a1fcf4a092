"use strict";
// Keys 1, 2, 0, s and u press the page's buttons; everything works without them.
(() => {
  let sent = false;
  document.addEventListener("submit", (event) => {
    if (sent) event.preventDefault(); // a second press while the first is on its way
    sent = true;
  });
  window.addEventListener("pageshow", () => { sent = false; });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
    const target = event.target;
    if (target instanceof HTMLElement && target.matches("input, textarea, select")) return;
    const button = document.querySelector(`button[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    if (!(button instanceof HTMLButtonElement) || button.disabled) return;
    event.preventDefault();
    button.click();
  });
})();
