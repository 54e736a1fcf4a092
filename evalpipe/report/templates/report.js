"use strict";
// Sorting, filtering and folding. Everything is readable without this script; it adds no content.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));

  // A metric's row opens its method; closed to begin with.
  const setOpen = (button, open) => {
    button.setAttribute("aria-expanded", String(open));
    document.getElementById(button.getAttribute("aria-controls")).hidden = !open;
  };
  for (const button of all("button.open")) {
    setOpen(button, false);
    button.addEventListener("click", () => setOpen(button, button.getAttribute("aria-expanded") !== "true"));
  }

  // A heading sorts up, then down, then back to the order of the page; groups are shown only in that order.
  const compare = (a, b) => {
    if (a === b) return 0;
    if (a === "") return 1;
    if (b === "") return -1;
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  for (const table of all("table.sortable")) {
    const original = all("tbody", table);
    const heads = all("th[data-sort]", table);
    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      const name = head.querySelector(".head");
      // Paper keeps the plain name: browsers leave buttons out of a heading they repeat on every page.
      const printed = name.cloneNode(true);
      printed.className = "print-only";
      button.append(...name.childNodes);
      name.replaceWith(button, printed);
      button.addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" };
        const order = next[head.getAttribute("aria-sort") || "none"];
        for (const other of heads) other.removeAttribute("aria-sort");
        table.classList.toggle("sorted", order !== "none");
        if (order === "none") return table.append(...original);
        head.setAttribute("aria-sort", order);
        const key = head.dataset.sort;
        const rows = original.filter((body) => body.classList.contains("metric"));
        rows.sort((a, b) => compare(a.dataset[key], b.dataset[key]) * (order === "ascending" ? 1 : -1));
        table.append(...rows);
      });
    }
  }

  // A link to something in a folded part opens it, in browsers that do not.
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!target) return;
    let folded = target.parentElement.closest("details:not([open])");
    for (; folded; folded = folded.parentElement.closest("details:not([open])")) folded.open = true;
    target.scrollIntoView();
  };
  window.addEventListener("hashchange", reveal);
  reveal();

  // Paper shows what is folded, and puts it back.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = all("details.more:not([open]), details.example.sampled:not([open])");
    for (const details of folded) details.open = true;
  });
  window.addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));

  // Examples: by kind and by words, and all at once open or folded.
  const examples = all("details.example");
  const search = document.getElementById("example-search");
  if (search) {
    const texts = new Map();
    const textOf = (example) => {
      if (!texts.has(example)) texts.set(example, example.textContent.toLowerCase());
      return texts.get(example);
    };
    const count = document.getElementById("example-count");
    const apply = () => {
      const kind = document.querySelector("input[name=kind]:checked").value;
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const example of examples) {
        const fits = (!kind || example.dataset.kind === kind) && words.every((word) => textOf(example).includes(word));
        example.hidden = !fits;
        shown += fits ? 1 : 0;
      }
      count.textContent = shown === examples.length ? "" : `${shown} of ${examples.length} examples`;
    };
    search.form.addEventListener("submit", (event) => event.preventDefault());
    search.addEventListener("input", apply);
    for (const radio of all("input[name=kind]")) radio.addEventListener("change", apply);
    const fold = (open) => () => examples.forEach((example) => { if (!example.hidden) example.open = open; });
    document.getElementById("unfold-all").addEventListener("click", fold(true));
    document.getElementById("fold-all").addEventListener("click", fold(false));
    apply();
  }
})();
