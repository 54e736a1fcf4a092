"""The served pages in a real browser: live counters, signing in and a step, no script from texts, no JavaScript, axe-core."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from collector_harness import RawUpstream, Running, Script, chat_answer, plain
from serve_harness import HOSTILE, TOKEN, Served, chat, decided

from evalpipe.models import CanaryStatus
from evalpipe.workspace import canary
from evalpipe.workspace.paths import Workspace

playwright_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]  # a busy machine draws slowly

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    wanted = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if not wanted:
        pytest.skip("no Chromium here: install one, or name it with CHROMIUM")
    with playwright_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=wanted, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def console() -> list[str]:
    """Every line of a page's console: a refused script or style, an error."""
    return []


@pytest.fixture
def page(browser: Any, console: list[str], serve: Callable[..., Served]) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    made = context.new_page()
    made.on("console", lambda message: console.append(message.text))
    made.on("pageerror", lambda error: console.append(str(error)))
    yield made
    context.close()


def sign_in(page: Any, served: Served) -> None:
    page.goto(f"{served.url}/e/rollout")
    page.get_by_role("link", name="Sign in").first.click()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/e/rollout")


def test_counters_move_by_themselves(
    page: Any,
    console: list[str],
    serve: Callable[..., Served],
    collector: Callable[..., Running],
    upstream: Callable[[Script], RawUpstream],
) -> None:
    server = upstream(lambda request: [plain(chat_answer())])
    running = collector(server.url, server.url)
    served = serve(running.root)
    page.goto(f"{served.url}/e/test")
    requests = page.locator('[data-live="test/requests"]')
    playwright_api.expect(requests).to_have_text("0")
    playwright_api.expect(page.locator("#live")).to_contain_text("Live")
    for _ in range(3):
        chat(running.port)
    playwright_api.expect(requests).to_have_text("3", timeout=20_000)
    assert running.stop() == 0
    playwright_api.expect(page.locator('[data-live="test/state"]')).to_have_text("no collector", timeout=20_000)
    assert console == []


def test_a_person_signs_in_and_resumes_the_canary(
    page: Any, console: list[str], serve: Callable[..., Served], rollout: Workspace
) -> None:
    served = serve(rollout.root)
    sign_in(page, served)
    form = page.locator('form:has(input[value="approve"])')
    form.get_by_role("button", name="Approve").click()  # the browser itself asks for who and why
    assert canary.open_history(rollout).state().status is CanaryStatus.PAUSED
    form.get_by_label("Who").fill("Bo Example")
    form.get_by_label("Why").fill(HOSTILE)
    form.get_by_role("button", name="Approve").click()
    playwright_api.expect(page.locator("table", has_text="History of the canary")).to_contain_text("Bo Example")
    assert canary.open_history(rollout).state().status is CanaryStatus.RUNNING
    page.get_by_role("button", name="Sign out").click()
    page.goto(f"{served.url}/e/rollout")
    playwright_api.expect(page.get_by_role("button", name="Rollback")).to_have_count(0)
    assert console == []


def test_a_page_that_something_has_happened_to_offers_to_load_it_again(
    page: Any, serve: Callable[..., Served], rollout: Workspace
) -> None:
    served = serve(rollout.root)
    page.goto(f"{served.url}/e/rollout")
    news = page.locator("#news")
    playwright_api.expect(page.locator("#live")).to_contain_text("Live")
    playwright_api.expect(news).to_be_hidden()
    canary.change_state(rollout, "rollback", why="complaints", by="Di")
    playwright_api.expect(news).to_be_visible(timeout=20_000)
    news.get_by_role("link").click()
    playwright_api.expect(page.locator("table", has_text="History of the canary")).to_contain_text("complaints")


def test_hostile_texts_run_nothing_and_change_nothing(
    page: Any, console: list[str], serve: Callable[..., Served], rollout: Workspace
) -> None:
    decided(rollout.root, f"Collect more: {HOSTILE}")
    served = serve(rollout.root)
    for path in ("/", "/e/rollout"):
        page.goto(f"{served.url}{path}")
        assert page.evaluate("window.HIT") is None
        assert page.locator("main script, main img").count() == 0
        assert "<script>window.HIT=1</script>" in page.locator("main").inner_text()
    assert console == []


def test_a_page_of_another_site_reaches_nothing(page: Any, serve: Callable[..., Served], rollout: Workspace) -> None:
    """A page of this machine, but another program's: a form, a frame and a fetch, sent with the signed-in cookie's browser."""
    served, other = serve(rollout.root), serve(rollout.root, token=None)
    sign_in(page, served)
    before = canary.open_history(rollout).events()
    page.goto(f"{other.url.replace('127.0.0.1', 'localhost')}/")
    assert (
        page.evaluate(
            "url => fetch(url, {credentials: 'include'}).then(() => 'read', () => 'refused')", f"{served.url}/"
        )
        == "refused"
    )
    context = page.context
    foreign = context.new_page()
    foreign.set_content(
        f'<form method="post" action="{served.url}/e/rollout/canary"><input name="step" value="rollback">'
        '<input name="who" value="x"><input name="why" value="y"><button>Go</button></form>'
    )
    with foreign.expect_response(f"{served.url}/e/rollout/canary") as found:
        foreign.get_by_role("button").click()
    assert found.value.status == 403
    assert canary.open_history(rollout).events() == before


def test_it_reads_without_javascript(browser: Any, serve: Callable[..., Served], rollout: Workspace) -> None:
    served = serve(rollout.root)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, served)
    text = page.locator("main").inner_text()
    assert "paused, 10 % treatment" in text and "History of the canary" in text
    form = page.locator('form:has(input[value="rollback"])')
    form.get_by_label("Who").fill("Bo")
    form.get_by_label("Why").fill("complaints")
    form.get_by_role("button", name="Rollback").click()
    assert "rolled back" in page.locator("main").inner_text()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_for_axe_to_find_and_no_sideways_scrolling(
    browser: Any, serve: Callable[..., Served], rollout: Workspace, scheme: str
) -> None:
    decided(rollout.root, f"Collect more: {HOSTILE}", setup_faults=[f"wrong key {HOSTILE} {'W' * 300}"])
    served = serve(rollout.root)
    for width in (1280, 390):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True
        )
        page = context.new_page()
        page.goto(f"{served.url}/sign-in?next=/e/rollout")
        visited = [page.url]
        _assert_clean(page)
        sign_in(page, served)
        for path in ("/e/rollout", "/", "/e/none"):
            page.goto(f"{served.url}{path}")
            visited.append(page.url)
            _assert_clean(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        folder = os.environ.get("EVALPIPE_SCREENSHOTS")
        if folder:
            for name, path in (("experiment", "/e/rollout"), ("index", "/")):
                page.goto(f"{served.url}{path}")
                page.screenshot(path=f"{folder}/{name}-{scheme}-{width}.png", full_page=True)
        assert len(set(visited)) == 4
        context.close()


def _assert_clean(page: Any) -> None:
    package = pytest.importorskip("axe_playwright_python")
    page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found["violations"]] == []
