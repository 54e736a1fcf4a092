// What the theme leaves out for screen readers.

// The search dialog has no name.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");

// A column without a heading has no header cell either.
for (const head of document.querySelectorAll(".md-typeset th:empty")) {
  head.replaceWith(document.createElement("td"));
}

// What the theme makes later: the buttons of a code block are a landmark without a name; a table that scrolls sideways cannot be
// reached by the keyboard.
function complete() {
  document.querySelectorAll("nav.md-code__nav").forEach((nav, place) => {
    if (!nav.hasAttribute("aria-label")) nav.setAttribute("aria-label", `Code block ${place + 1}`);
  });
  for (const part of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset__table, .md-typeset table")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
}
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", complete);
complete();
