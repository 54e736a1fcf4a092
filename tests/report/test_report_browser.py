"""The page in a real browser: clicks, keys, colours, paper, narrow screens, accessibility, and content that means harm.

One headless Chromium for the whole file (CHROMIUM names another). Every page is watched: a request that leaves it, a
line in its console or an error in its script fails the test.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from event_builders import eventful, misconfigured
from hostile_texts import hostile
from report_builders import START, demo_like, empty, example, mixed, side

from evalpipe.analysis.result import Analysis, MetricResult
from evalpipe.report.compare import render_comparison
from evalpipe.report.history import KeptLook, look_of
from evalpipe.report.render import Listed, render, render_history, render_index

playwright_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]  # a busy machine draws slowly

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Watched:
    """A page and everything it did that a report must not do."""

    page: Any
    path: Path
    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)

    def assert_quiet(self) -> None:
        assert self.requests == []
        assert self.console == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    wanted = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if not wanted:
        pytest.skip("no Chromium here: install one, or name it with CHROMIUM")
    with playwright_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=wanted, args=ARGUMENTS)
        yield launched
        launched.close()


def asked() -> Analysis:
    """With everything that the first screen has room for."""
    about = {
        "question": "Can claude-haiku-4-5 answer our customers as well as gpt-4o, at no higher price and no slower?",
        "owner": "Ana Example, customer support",
        "link": "https://tickets.example/browse/SUPPORT-12345",
        "requests_per_month": 12_000_000,
    }
    return dataclasses.replace(eventful(), provenance=eventful().provenance | {"about": about})


def long_name(metric: MetricResult) -> MetricResult:
    return dataclasses.replace(metric, label=f"{metric.label} of requests that came in through the partners' gateway")


def listed(analysis: Analysis, name: str) -> Listed:
    return Listed(look=look_of(analysis), name=f"{name}.html", history=f"{name}/index.html")


def looks() -> list[KeptLook]:
    """Twenty days, with an excluded period and decisions among them."""
    days = [START + timedelta(days=day, hours=1) for day in range(20)]
    return [
        KeptLook(look=look_of(dataclasses.replace(eventful(), generated_at=day.isoformat())), href=f"{n}.html")
        for n, day in enumerate(days)
    ]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    rtl = example(
        1, prompt=[{"role": "user", "content": "שלום"}], control=side("שלום עולם"), treatment=side("# Hi\n\nthere")
    )
    made = {
        "mixed": render(mixed()),
        "demo": render(demo_like()),
        "eventful": render(eventful(), max_examples=2),
        "asked": render(asked()),
        "misconfigured": render(misconfigured(), max_examples=2),
        "short": render(mixed(), max_examples=2),
        "demo short": render(demo_like(), max_examples=2),
        "empty": render(empty()),
        "compare": render_comparison(mixed(), demo_like()),
        "index": render_index([listed(mixed(), "mixed"), listed(demo_like(), "demo")], skipped=1),
        "history": render_history(looks(), latest="../support-bot.html"),
        "hostile": render(hostile(), max_examples=200),
        "rtl": render(dataclasses.replace(mixed(), examples=[rtl])),
        "long names": render(dataclasses.replace(mixed(), metrics=[*map(long_name, mixed().metrics)], examples=[])),
    }
    for name, page in made.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def open_page(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Watched]]:
    opened: list[Any] = []

    def open_(name: str, **context: Any) -> Watched:
        holder = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | context))
        opened.append(holder)
        page = holder.new_page()
        watched = Watched(page=page, path=pages[name])
        own = pages[name].as_uri()
        page.on("request", lambda r: None if r.url in {own, "data:,"} else watched.requests.append(r.url))
        page.on("console", lambda message: watched.console.append(message.text))
        page.on("pageerror", lambda error: watched.console.append(str(error)))
        page.on("dialog", lambda dialog: (watched.console.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.goto(own)
        return watched

    yield open_
    for holder in opened:
        holder.close()


INFORM = "details.more table.metrics"
"""the folded table, of the metrics that decide nothing"""


def names(page: Any) -> list[str]:
    return page.eval_on_selector_all(f"{INFORM} tbody.metric", "rows => rows.map(row => row.dataset.name)")


def unfold(page: Any) -> None:
    page.eval_on_selector_all("details.more", "all => all.forEach(one => { one.open = true; })")


def test_a_reader_clicks_through_the_report(open_page: Callable[..., Watched]) -> None:
    watched = open_page("mixed")
    page = watched.page

    # A row opens by click and by key, and closes again.
    button = page.locator("button.open", has_text="Error rate").first
    detail = page.locator(f"#{button.get_attribute('aria-controls')}")
    assert not detail.is_visible()
    button.click()
    assert detail.is_visible()
    assert button.get_attribute("aria-expanded") == "true"
    assert "Tango score interval" in detail.inner_text()
    button.focus()
    page.keyboard.press("Enter")
    assert not detail.is_visible()

    # What decides nothing is folded.
    assert not page.locator(INFORM).is_visible()
    page.get_by_text("Metrics that only inform").click()
    assert page.locator(INFORM).is_visible()
    unfold(page)

    # Sorting: up, down, and back to the order of the page with its groups.
    original = names(page)
    by_name = page.locator(f"{INFORM} th[data-sort=name] button")
    by_name.click()
    assert names(page) == sorted(original)
    assert page.locator(f"{INFORM} th[data-sort=name]").get_attribute("aria-sort") == "ascending"
    assert not page.locator(f"{INFORM} tbody.group").first.is_visible()
    by_name.click()
    assert names(page) == sorted(original, reverse=True)
    by_name.click()
    assert names(page) == original
    assert page.locator(f"{INFORM} tbody.group").first.is_visible()
    page.locator(f"{INFORM} th[data-sort=finding] button").click()
    outcomes = page.eval_on_selector_all(
        f"{INFORM} tr.main[data-metric]", "rows => rows.map(row => row.dataset.outcome)"
    )
    assert [k for k, _ in itertools.groupby(outcomes)] == [
        "worse", "inconclusive", "undefined", "equivalent", "better",
    ]  # fmt: skip
    page.locator(f"{INFORM} th[data-sort=effect] button").click()
    assert names(page)[0] == "Refusal rate"

    # Filtering the examples by kind and by words.
    shown = page.locator("details.example:visible")
    assert shown.count() == 25
    page.get_by_text("judge contradicted itself (5)").click()
    assert shown.count() == 5
    page.get_by_text("all (25)").click()
    page.locator("#example-search").fill("PARCEL req-0007")
    assert shown.count() == 1
    assert page.locator("#example-count").inner_text() == "1 of 25 examples"
    page.locator("#example-search").fill("nothing says this")
    assert shown.count() == 0
    page.locator("#example-search").fill("")

    # Folding: all, and one.
    page.locator("#fold-all").click()
    assert page.locator("details.example[open]").count() == 0
    page.locator("#unfold-all").click()
    assert page.locator("details.example[open]").count() == 25
    first = page.locator("details.example").first
    first.locator("details.diff > summary").click()
    assert first.locator("del").first.inner_text().strip() == "Please wait five" or first.locator("del").count() > 0
    first.locator("details.raw > summary").first.click()
    assert "**five**" in first.locator("details.raw pre").first.inner_text()
    watched.assert_quiet()


@pytest.mark.parametrize("name", ["mixed", "demo", "eventful", "misconfigured", "asked"])
def test_the_first_screen_fits_a_laptop_and_two_screens_of_a_phone(
    open_page: Callable[..., Watched], name: str
) -> None:
    for width, height in ((1280, 900), (390, 2 * 844)):
        page = open_page(name, viewport={"width": width, "height": height}).page
        assert page.evaluate("document.querySelector('.first').getBoundingClientRect().bottom") <= height


def test_a_bad_answer_is_one_click_away(open_page: Callable[..., Watched]) -> None:
    for scripted in (True, False):
        watched = open_page("asked", java_script_enabled=scripted)
        page = watched.page
        page.locator("a.sample.treatment_lost").first.click()
        shown = page.locator(":target .sides")
        assert shown.is_visible()
        assert "free of charge" in shown.locator(".treatment").inner_text()
        assert watched.page.evaluate("document.querySelector(':target').getBoundingClientRect().top < innerHeight")


def test_the_keyboard_alone_reaches_everything(open_page: Callable[..., Watched]) -> None:
    watched = open_page("short")
    page = watched.page
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    assert skip.evaluate("link => link === document.activeElement && link.getBoundingClientRect().left >= 0")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#theme-dark").is_checked()
    unfold(page)
    # From there Tab walks to the end of the page, past whatever can be pressed or scrolled, and shows where it is.
    reached = page.evaluate("[...document.querySelectorAll('button, summary, input[type=search], [tabindex]')].length")
    seen = []
    for _ in range(reached * 2):
        page.keyboard.press("Tab")
        at = page.evaluate("(e => [e.tagName, getComputedStyle(e).outlineStyle !== 'none'])(document.activeElement)")
        if at[0] == "BODY":
            break
        seen.append(at)
    assert {"BUTTON", "SUMMARY", "INPUT"} <= {tag for tag, _ in seen}
    assert len(seen) >= page.locator("button:visible").count() + page.locator("summary:visible").count()
    assert all(outlined for tag, outlined in seen if tag != "INPUT")
    page.locator("details.example > summary").last.focus()
    was = page.locator("details.example[open]").count()
    page.keyboard.press("Enter")
    assert page.locator("details.example[open]").count() == was + 1
    watched.assert_quiet()


def test_the_history_opens_without_a_script(open_page: Callable[..., Watched]) -> None:
    watched = open_page("eventful", java_script_enabled=False)
    history = watched.page.locator("details.history")
    assert not history.locator("li").first.is_visible()
    history.locator("summary").click()
    assert history.locator("li").count() == 3
    assert history.locator("li").first.is_visible()


def test_dark_and_light_by_choice_and_by_system(open_page: Callable[..., Watched]) -> None:
    def ground(page: Any) -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = "rgb(253, 252, 249)", "rgb(23, 22, 20)"
    watched = open_page("mixed", color_scheme="light")
    assert ground(watched.page) == light
    watched.page.get_by_text("Dark", exact=True).click()
    assert ground(watched.page) == dark
    system = open_page("mixed", color_scheme="dark")
    assert ground(system.page) == dark
    system.page.get_by_text("Light", exact=True).click()
    assert ground(system.page) == light
    # Paper is white whatever the screen is.
    system.page.get_by_text("Dark", exact=True).click()
    system.page.emulate_media(media="print")
    assert ground(system.page) == "rgb(255, 255, 255)"
    assert system.page.evaluate("getComputedStyle(document.body).color") == "rgb(29, 28, 26)"
    watched.assert_quiet()
    system.assert_quiet()


def n_pages(page: Any) -> int:
    pdf = page.pdf(prefer_css_page_size=True, print_background=True)
    return pdf.count(b"/Type /Page\n") or pdf.count(b"/Type /Page ") or pdf.count(b"/Type/Page\n")


def test_paper_begins_with_a_page_by_itself_and_holds_what_is_folded(open_page: Callable[..., Watched]) -> None:
    watched = open_page("mixed")
    page = watched.page
    whole = n_pages(page)
    assert whole <= 10
    assert page.locator("details.more[open]").count() == 0  # as it was before
    # A4 without its margins is 182 x 263 mm: the first screen is no longer than that.
    page.set_viewport_size({"width": 688, "height": 994})
    page.emulate_media(media="print")
    assert page.evaluate("document.querySelector('.first').getBoundingClientRect().bottom") <= 994
    assert page.locator(INFORM).is_visible()
    assert page.locator(".methods").is_visible()
    assert (
        page.locator("details.example.sampled .sides").count() == page.locator("details.example:visible").count() == 4
    )
    assert all(sides.is_visible() for sides in page.locator("details.example.sampled .sides").all())
    page.evaluate("document.querySelectorAll('main > :not(.first)').forEach(part => part.remove())")
    page.evaluate("document.querySelector('footer').remove()")
    assert n_pages(page) == 1
    watched.assert_quiet()


def test_paper_names_every_column(open_page: Callable[..., Watched]) -> None:
    # Browsers leave buttons out of a heading they repeat on the next page: on paper the names are plain text.
    page = open_page("mixed").page
    page.emulate_media(media="print")
    heads = page.locator("table.metrics").first.locator("thead th")
    assert [text.split()[0] for text in heads.all_inner_texts() if text.strip()] == [
        "Metric", "Control", "Treatment", "Difference", "←", "Finding",
    ]  # fmt: skip
    assert page.locator("thead button:visible").count() == 0


LABELS = """
svgs => svgs.flatMap(svg => {
  const [, , width] = svg.getAttribute('viewBox').split(' ').map(Number);
  const boxes = Array.from(svg.querySelectorAll('text')).map(t => ({ box: t.getBBox(), text: t.textContent }));
  const cut = boxes.filter(({ box }) => box.x < -1 || box.x + box.width > width + 1);
  const over = boxes.filter((a, i) => boxes.some((b, j) => j > i && a.box.x < b.box.x + b.box.width &&
    b.box.x < a.box.x + a.box.width && a.box.y < b.box.y + b.box.height - 2 && b.box.y < a.box.y + a.box.height - 2));
  return [...cut, ...over].map(({ text }) => `${svg.querySelector('title').textContent}: ${text}`);
})
"""


@pytest.mark.parametrize(
    ("name", "width"), [("mixed", 1200), ("mixed", 390), ("demo", 1200), ("long names", 1200), ("history", 1200)]
)
def test_no_label_of_a_picture_is_cut_or_covers_another(
    open_page: Callable[..., Watched], name: str, width: int
) -> None:
    page = open_page(name, viewport={"width": width, "height": 900}).page
    unfold(page)
    assert page.locator("svg.chart text").count() > 20
    assert page.eval_on_selector_all("svg.chart", LABELS) == []


def test_without_script_everything_can_be_read(open_page: Callable[..., Watched]) -> None:
    watched = open_page("mixed", java_script_enabled=False)
    unfold(watched.page)
    details = watched.page.locator("tr.detail")
    assert details.count() == 12
    assert all(details.nth(n).is_visible() for n in range(12))
    assert not watched.page.locator(".filters").is_visible()
    watched.page.locator("details.example").nth(10).locator("summary").first.click()
    assert watched.page.locator("details.example").nth(10).locator(".sides").is_visible()


@pytest.mark.parametrize(
    "name",
    [
        "mixed",
        "demo",
        "eventful",
        "misconfigured",
        "empty",
        "compare",
        "index",
        "history",
        "hostile",
        "rtl",
        "long names",
    ],
)
def test_a_narrow_screen_needs_no_sideways_scrolling(open_page: Callable[..., Watched], name: str) -> None:
    watched = open_page(name, viewport={"width": 390, "height": 844})
    unfold(watched.page)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 390
    watched.assert_quiet()


def test_hostile_content_is_shown_and_does_nothing(open_page: Callable[..., Watched]) -> None:
    watched = open_page("hostile")
    page = watched.page
    assert watched.path.stat().st_size < 12_000_000
    unfold(page)
    page.locator("#unfold-all").click()
    assert page.locator("details.example[open]").count() == 200
    page.eval_on_selector_all("details.example details", "all => all.forEach(one => { one.open = true; })")
    assert page.evaluate("window.HIT") is None
    assert "HIT" not in page.title() or page.title().startswith("<script>")
    # One script, one style, no element that could load, send or cover anything.
    assert page.locator("script").count() == 1
    assert page.locator("style").count() == 1
    assert (
        page.locator(
            "img, iframe, object, embed, base, main form[action], a[href]:not(.skip, [href^='#']), [style]"
        ).count()
        == 0
    )
    assert page.locator("meta[http-equiv]").count() == 1
    handlers = "e => e.filter(x => x.getAttributeNames().some(n => n.startsWith('on'))).length"
    assert page.eval_on_selector_all("body *", handlers) == 0
    # What was written is what is read.
    text = page.evaluate("document.querySelector('main').textContent")
    assert "{{7*7}}" in text
    assert "49 " not in text.split("{{7*7}}")[1][:20]
    assert "⟨RLO⟩This line runs backwards" in text
    assert "NUL ␀ in the ␀ middle" in text
    assert "lone \\uD800 surrogates" in text
    assert "more characters were cut here" in text
    # The layout holds: nothing wider than the page, every picture of an example within it.
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    over = "e => e.filter(x => x.getBoundingClientRect().right > innerWidth + 1).length"
    assert page.eval_on_selector_all("details.example .prose, details.example pre, td, th, dd, li", over) == 0
    watched.assert_quiet()


def axe_source() -> str:
    package = pytest.importorskip("axe_playwright_python")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        ("short", "light", 1200),
        ("short", "dark", 390),
        ("demo short", "dark", 1200),
        ("eventful", "light", 1200),
        ("eventful", "dark", 390),
        ("misconfigured", "dark", 1200),
        ("empty", "light", 1200),
        ("compare", "dark", 1200),
        ("index", "light", 1200),
        ("history", "dark", 390),
        ("history", "light", 1200),
    ],
)
def test_axe_finds_no_violation_of_wcag_aa(
    browser: Any, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    # The page's own policy lets no foreign script in, and that is right; for axe alone it is set aside.
    context = browser.new_context(bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto(pages[name].as_uri())
    unfold(page)
    if name == "short" and width > 600:
        page.eval_on_selector_all("button.open", "buttons => buttons.slice(0, 4).forEach(button => button.click())")
    page.evaluate(axe_source())
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    result = page.evaluate(
        "tags => axe.run(document, {runOnly: {type: 'tag', values: tags}, resultTypes: ['violations']})", tags
    )
    found = [
        (v["id"], [node["target"] for node in v["nodes"][:3]], v["nodes"][0]["failureSummary"])
        for v in result["violations"]
    ]
    context.close()
    assert found == []


@pytest.mark.serial
def test_first_paint_is_quick(open_page: Callable[..., Watched]) -> None:
    watched = open_page("mixed")
    paint = watched.page.evaluate(
        "new Promise(done => new PerformanceObserver(list => list.getEntriesByName('first-contentful-paint')"
        ".forEach(entry => done(entry.startTime))).observe({type: 'paint', buffered: true}))"
    )
    assert paint < 3000  # milliseconds; generous here, where other tests run beside it
