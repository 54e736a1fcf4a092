"""The page in Chromium: keys, a phone, hostile texts, colours, accessibility, and forty labels of the shipped sample."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from label_harness import ForkedPage, Page, forked_page, label_page, make_workspace, rows
from warm_start import evalpipe_program

from evalpipe.sim.app import start_sim
from evalpipe.sim.settings import SimSettings
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))  # its hostile texts
from hostile_texts import TEXTS

playwright_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PICTURES = os.environ.get("EVALPIPE_PICTURES")
"""a folder for screenshots, to be looked at"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    wanted = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if not wanted:
        pytest.skip("no Chromium here: install one, or name it with CHROMIUM")
    with playwright_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=wanted, args=ARGUMENTS)
        yield launched
        launched.close()


@dataclass
class Watched:
    """A page, and everything it did that this one must not do: requests elsewhere, lines in the console, dialogs."""

    page: Any
    problems: list[str] = field(default_factory=list)


def opened(browser: Any, served: Page | ForkedPage, name: str, **context: Any) -> Watched:
    holder = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | context))
    watched = Watched(page=holder.new_page())
    own = f"http://127.0.0.1:{served.port}/"
    note = watched.problems.append
    watched.page.on("request", lambda r: None if r.url.startswith(own) or r.url == "data:," else note(r.url))
    watched.page.on("console", lambda message: note(message.text))
    watched.page.on("pageerror", lambda error: note(str(error)))
    watched.page.on("dialog", lambda dialog: (note(f"dialog {dialog.message}"), dialog.dismiss()))
    watched.page.goto(served.address)
    watched.page.get_by_label("Your name").fill(name)
    watched.page.get_by_role("button", name="Start").click()
    watched.page.wait_for_selector(".bar, h1:has-text('Nothing left')")
    return watched


def picture(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"))


def press(page: Any, key: str) -> None:
    with page.expect_navigation():
        page.keyboard.press(key)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The shipped sample, loaded and judged by the simulated judge of stated rules."""
    import gzip

    root = tmp_path_factory.mktemp("sample")
    os.environ["EVALPIPE_LABEL_TEST_KEY"] = "any"
    with start_sim(SimSettings()) as sim:
        (root / "evalpipe.toml").write_text(
            f'[experiment]\nname = "demo"\n[collector]\nhash_units = false\n[judge]\nbase_url = "{sim.base_url}"\n'
            'api_key_env = "EVALPIPE_LABEL_TEST_KEY"\nrequests_per_minute = 60000\ninput_tokens_per_minute = 100000000\n'
            "output_tokens_per_minute = 100000000\n"
        )
        found = open_workspace(root / "evalpipe.toml")
        found.spool.mkdir(parents=True)
        log = gzip.decompress((ROOT / "data/sample/log.jsonl.gz").read_bytes())
        (found.spool / "served-sample.000001.jsonl").write_bytes(log)
        load(found, show_progress=False)
        # In a process of its own: the browser's driver has the event loop of this one.
        subprocess.run([evalpipe_program(), "judge"], cwd=root, check=True, capture_output=True, timeout=240)
    return found


def test_forty_labels_of_the_sample_by_two_people(browser: Any, sample: Workspace) -> None:
    with label_page(sample.root, "--pairs", "40", "--overlap", "0.2", "--seed", "sample") as served:
        people = [opened(browser, served, name) for name in ("Ana", "Bo")]
        for turn in range(200):
            active = [one for one in people if one.page.query_selector(".bar")]
            if not active:
                break
            one = active[turn % len(active)]
            if turn == 0:
                picture(one.page, "sample")
            words = [len(text.split()) for text in one.page.locator(".side").all_inner_texts()]
            press(one.page, "0" if words[0] == words[1] else "1" if words[0] > words[1] else "2")
        assert [one.problems for one in people] == [[], []]
        picture(people[0].page, "done")
        assert served.stop() == 0
    labels = rows(
        sample,
        "SELECT request_id, labeler, preference, probability, stratum FROM labels WHERE source = 'human'",
        "demo",
    )
    by_request = Counter(row[0] for row in labels)
    assert len(by_request) == 40
    n_shared = sum(n == 2 for n in by_request.values())
    assert len(labels) == 40 + n_shared
    assert 1 <= n_shared <= 20
    assert {row[1] for row in labels} == {"Ana", "Bo"}
    assert all(row[2] in (0.0, 0.5, 1.0) and 0 < row[3] <= 1 for row in labels)
    # The draw's weights add up to the pairs it was drawn of.
    by_pair = {row[0]: row[3] for row in labels}
    total = sum(1 / probability for probability in by_pair.values())
    ((n_pairs,),) = rows(
        sample, "SELECT count(DISTINCT request_id) FROM judgments WHERE preference IS NOT NULL", "demo"
    )
    assert total <= n_pairs + 1e-6
    assert len({(row[3], row[4]) for row in labels}) <= 2
    print(
        f"{len(labels)} labels of 40 pairs, {n_shared} by both; probabilities {sorted({row[3:] for row in labels}, key=str)}"
    )


def test_keys_do_what_their_buttons_do_and_nothing_in_a_comment(browser: Any, tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 12)
    with forked_page(tmp_path, n_pairs=12, overlap=0.0) as served:
        watched = opened(browser, served, "Ana")
        page = watched.page

        def token() -> str:
            return str(page.get_attribute("input[name=pair]", "value"))

        first = token()
        press(page, "1")
        second = token()
        press(page, "u")
        assert token() == first
        assert "taken back" in page.inner_text(".note")
        press(page, "2")
        assert token() == second
        press(page, "s")
        third = token()
        page.get_by_text("Comment and scores").click()
        page.get_by_label("Comment").type("1 2 0 u s: as typed")
        assert token() == third
        page.get_by_label("Answer 1, 1 (bad) to 5 (good)").select_option("4")
        picture(page, "comment")
        with page.expect_navigation():
            page.get_by_role("button", name="Tie").click()
        page.keyboard.press("Control+1")
        page.wait_for_timeout(100)
        assert watched.problems == []
        served.stop()
    labels = rows(
        found, "SELECT preference, note, coalesce(control_score, treatment_score) FROM labels ORDER BY labeled_at"
    )
    assert labels[1] == (0.5, "1 2 0 u s: as typed", 4.0)
    assert len(labels) == 2


FOREIGN = (
    "main img, main iframe, main a, main object, main embed, main base, main link, main svg, main style, main script, "
    ".side form, .side input, .question form, .question input"
)
"""elements that no text of a pair may become"""


def test_hostile_texts_do_nothing_wherever_they_stand(browser: Any, tmp_path: Path) -> None:
    """Every one of the texts as both answers, every short one as the question too; all mean harm. Each is shown as text: nothing
    runs, nothing is asked for elsewhere, nothing leaves its box."""
    short = [text.encode("utf-8", "replace").decode() for text in TEXTS if len(text) < 100_000]
    long = [text for text in TEXTS if len(text) >= 100_000]
    assert len(short) >= 30
    assert len(long) >= 3
    texts = [
        (short[(n + 2) % len(short)] or "question", pool[n], pool[(n + 1) % len(pool)])
        for pool in (short, long)
        for n in range(len(pool))
    ]
    n_pairs = len(texts)
    make_workspace(tmp_path, n_pairs, texts=texts)
    with forked_page(tmp_path, n_pairs=n_pairs, overlap=0.0) as served:
        watched = opened(browser, served, "<script>window.HIT=1</script>"[:60])
        page = watched.page
        n_shown = 0
        while page.query_selector(".bar"):
            state = page.evaluate(
                "() => ({hit: window.HIT, title: document.title, width: document.documentElement.scrollWidth, "
                "out: [...document.querySelectorAll('.side, .question')].filter(e => e.scrollWidth > e.clientWidth + 1).length, "
                f"foreign: document.querySelectorAll('{FOREIGN}').length}})"
            )
            assert state["hit"] is None
            assert state["title"].startswith("Which answer is better?")
            assert (state["width"] <= 1200, state["out"], state["foreign"]) == (True, 0, 0), n_shown
            n_shown += 1
            press(page, "0")
        assert n_shown == n_pairs
        assert watched.problems == []
        served.stop()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390)])
def test_axe_finds_nothing_in_light_and_dark_on_a_desk_and_a_phone(
    browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    package = pytest.importorskip("axe_playwright_python")
    axe = (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    prompt = "Explain it, with a list and a table."
    rich = "# A list\n\n- **one**\n- two `code`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\nprint(1)\n```\n\n> quoted [link](https://x.example)"
    make_workspace(tmp_path, 8, texts=[(prompt, rich, "Plain words, and some more of them. " * 30)] * 8)
    with forked_page(tmp_path, n_pairs=8, overlap=0.0) as served:
        context = {"bypass_csp": True, "color_scheme": scheme, "viewport": {"width": width, "height": 844}}
        if width < 600:
            context |= {"has_touch": True, "is_mobile": True, "device_scale_factor": 2}
        watched = opened(browser, served, "Ana", **context)
        page = watched.page
        seen = []
        picture(page, f"pair-{scheme}-{width}")
        page.evaluate(axe)
        seen += violations(page)
        for each in page.query_selector_all("details"):
            each.evaluate("e => { e.open = true; }")
        seen += violations(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # The buttons are on the screen wherever one reads, and large enough for a thumb.
        boxes = [button.bounding_box() for button in page.query_selector_all(".bar .choice")]
        assert all(box["y"] + box["height"] <= 844 and box["height"] >= 44 for box in boxes)
        press(page, "u") if page.query_selector("button[data-key=u]:not([disabled])") else press(page, "1")
        page.goto(f"http://127.0.0.1:{served.port}/")
        page.evaluate(axe)
        seen += violations(page)
        picture(page, f"name-{scheme}-{width}")
        page.goto(f"http://127.0.0.1:{served.port}/?as=Ana")
        while page.query_selector(".bar"):
            press(page, "1")
        page.evaluate(axe)
        seen += violations(page)
        assert seen == []
        assert [one for one in watched.problems if "axe" not in one] == []
        served.stop()


def violations(page: Any) -> list[Any]:
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    result = page.evaluate(
        "tags => axe.run(document, {runOnly: {type: 'tag', values: tags}, resultTypes: ['violations']})", tags
    )
    return [
        (v["id"], [n["target"] for n in v["nodes"][:3]], v["nodes"][0]["failureSummary"]) for v in result["violations"]
    ]


def test_the_page_works_without_javascript(browser: Any, tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 5)
    with forked_page(tmp_path, n_pairs=5, overlap=0.0) as served:
        watched = opened(browser, served, "Ana", java_script_enabled=False)
        page = watched.page
        for _ in range(5):
            with page.expect_navigation():
                page.get_by_role("button", name="Answer 1").click()
        assert "5 labelled" in page.inner_text("main")
        served.stop()
    assert len(rows(found, "SELECT * FROM labels")) == 5
