"use strict";
// The counters as they change. The page is whole without this script; it writes texts only, no markup.
(() => {
  const live = document.getElementById("live");
  const news = document.getElementById("news");
  const shown = new Map();
  for (const place of document.querySelectorAll("[data-live]")) shown.set(place.dataset.live, place);
  const versions = Array.from(document.querySelectorAll("[data-version]"), (place) => [place.dataset.key, place.dataset.version]);
  if (!shown.size && !versions.length) return;
  let last = "";
  const stream = new EventSource("/events");
  stream.addEventListener("counters", (event) => {
    const { at, experiments } = JSON.parse(event.data);
    for (const [key, { texts }] of Object.entries(experiments)) {
      for (const [name, text] of Object.entries(texts)) {
        const place = shown.get(`${key}/${name}`);
        if (place && place.textContent !== text) place.textContent = text;
      }
    }
    last = at;
    live.textContent = `Live, ${at}`;
    live.classList.remove("lost");
    news.hidden = versions.every(([key, version]) => !experiments[key] || experiments[key].version === version);
  });
  stream.addEventListener("error", () => {
    live.textContent = last ? `Connection lost, counters of ${last}` : "No connection: the counters are as the page was made";
    live.classList.add("lost");
  });
  window.addEventListener("pagehide", () => stream.close());
})();
