"""The served pages over real HTTP: what they show, what they never show, and what may be done with the token."""

from __future__ import annotations

import html
import http.client
import json
import re
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from collector_harness import RawUpstream, Running, Script, chat_answer, eventually, plain
from fake_provider import FakeProvider, longer_wins
from serve_harness import HOSTILE, TOKEN, Served, chat, decided
from test_judging_run import pairs, workspace

from evalpipe.models import CanaryStatus
from evalpipe.workspace import canary
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.run import RunOptions, run_job

SERVE = Callable[..., Served]
QUIET = RunOptions(show_progress=False)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two looks and their reports."""
    folder = tmp_path_factory.mktemp("shop")
    with FakeProvider(longer_wins) as provider:
        found = workspace(folder, provider.url, pairs(6))
        run_job(found, QUIET)
        run_job(workspace(folder, provider.url, pairs(9)), QUIET)
    return folder


def seen_in(page: str, step: str) -> str:
    form = page[page.index(f'name="step" value="{step}"') :]
    found = re.search(r'name="seen" value="([^"]*)"', form)
    assert found is not None
    return found[1]


def test_the_first_page_lists_every_folder_with_its_decision(serve: SERVE, reported: Path, rollout: Workspace) -> None:
    (reported.parent / "nothing").mkdir(exist_ok=True)
    decided(rollout.root, f"Collect more: {HOSTILE}")
    served = serve(reported, rollout.root, reported.parent / "nothing")
    page = served.ask("/").text
    assert re.findall(r'href="/e/([^"/]+)"><bdi>', page) == ["t", "rollout", "nothing"]
    verdict = json.loads((reported / "data" / "verdict.json").read_text())
    assert verdict["headline"] in html.unescape(page)
    assert "9 requests, 9 pairs and 9 judged are stored" in page
    assert "canary paused, 10 %" in page
    assert "No evalpipe.toml and no data in" in page


def test_hostile_words_are_shown_and_do_nothing(serve: SERVE, rollout: Workspace) -> None:
    decided(rollout.root, f"Collect more: {HOSTILE}", setup_faults=[f"the key is wrong: {HOSTILE}"])
    served = serve(rollout.root)
    for path in ("/", "/e/rollout"):
        page = served.ask(path).text
        assert "&lt;script&gt;window.HIT=1&lt;/script&gt;" in page and "⟨RLO⟩" in page
        assert len(re.findall(r"<script", page)) == 1 and "<img" not in page and "<b>" not in page
    assert page.count("&lt;script&gt;") >= 3  # headline, problem, and the canary's history


def test_what_is_wrong_stands_with_a_line_that_runs_from_anywhere(
    serve: SERVE, rollout: Workspace, tmp_path: Path
) -> None:
    awkward = tmp_path / "a folder; rm -rf"
    shutil.copytree(rollout.root, awkward)
    page = serve(awkward).ask("/e/rollout").text
    lines = re.findall(r"<code>(cd [^<]*)</code>", page)
    assert all(line.startswith(f"cd &#39;{awkward}&#39; &amp;&amp; ") for line in lines)
    assert any(line.endswith("evalpipe canary run") for line in lines)
    assert "canary&#39;s guardrails are not evaluated: no controller runs" in page


def test_a_folder_that_cannot_be_opened_does_not_hide_the_others(serve: SERVE, reported: Path, tmp_path: Path) -> None:
    (tmp_path / "evalpipe.toml").write_text("[experiment]\nname = 'a'\nmdoe = 'shadow'\n")
    served = serve(tmp_path, reported)
    page = served.ask("/").text
    assert "unknown key experiment.mdoe; did you mean" in page
    assert served.ask("/e/t").status == 200
    assert served.ask(f"/e/{tmp_path.name}").status == 200


def test_an_experiment_whose_files_cannot_be_read_does_not_hide_the_others_or_stop_the_stream(
    serve: SERVE, reported: Path, rollout: Workspace
) -> None:
    (rollout.data / "canary" / "rollout.jsonl").unlink()
    (rollout.data / "canary" / "rollout.jsonl").mkdir()
    (rollout.data / "experiments").mkdir()
    (rollout.data / "experiments" / "rollout.json").mkdir()
    served = serve(rollout.root, reported)
    page = served.ask("/")
    assert (page.status, "cannot be read" in page.text, "9 requests, 9 pairs" in page.text) == (200, True, True)
    assert served.ask("/e/rollout").status == 200
    stream = events_of(served)
    for _ in range(3):
        assert "t" in next(stream)["experiments"]
    stream.close()


def test_looks_decisions_and_reports_are_there_and_every_link_leads_somewhere(serve: SERVE, reported: Path) -> None:
    served = serve(reported)
    waiting, seen = ["/"], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        found = served.ask(path)
        assert found.status == 200, path
        if found.headers["content-type"].startswith("text/html"):
            waiting += [urljoin(path, href) for href in re.findall(r'href="([^"#:]+)"', found.text)]
    assert {"/", "/e/t", "/e/t/reports/t.html", "/e/t/reports/t/index.html"} <= seen
    page = served.ask("/e/t").text
    assert "+3\u00a0pairs" in page  # 6, then 9
    assert len(re.findall(r'<th scope="row"><a href="/e/t/reports/t/', page)) == 2


def test_reports_keep_their_own_policy_and_can_reach_nothing_of_the_server(serve: SERVE, reported: Path) -> None:
    found = serve(reported).ask("/e/t/reports/t.html")
    policy = found.headers["content-security-policy"]
    own = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', found.text)
    assert own is not None
    assert policy.startswith(html.unescape(own[1]))
    assert "sandbox allow-scripts" in policy and "allow-same-origin" not in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    "path",
    [
        "../evalpipe.toml",
        "..%2fevalpipe.toml",
        "%2e%2e/evalpipe.toml",
        "%2e%2e%2fevalpipe.toml",
        "t/../../evalpipe.toml",
        "..%5cevalpipe.toml",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "link.html",
        "linked/secret.html",
        ".hidden.html",
        "notes.txt",
        "t.html%00.json",
        "t",
        "",
    ],
)
def test_nothing_but_the_files_of_the_reports_folder_is_served(
    serve: SERVE, rollout: Workspace, tmp_path: Path, path: str
) -> None:
    secret = tmp_path / "secret.html"
    secret.write_text("not for you")
    rollout.reports.mkdir()
    for name in ("notes.txt", ".hidden.html", "t.html"):
        (rollout.reports / name).write_text("not for you")
    (rollout.reports / "link.html").symlink_to(secret)
    (rollout.reports / "linked").symlink_to(tmp_path)
    served = serve(rollout.root)
    found = served.ask(f"/e/rollout/reports/{path}")
    assert (found.status, "not for you" in found.text) == (404, False)
    assert served.ask("/e/rollout/reports/t.html").status == 200


def test_a_step_is_recorded_with_who_and_why(serve: SERVE, rollout: Workspace) -> None:
    served = serve(rollout.root)
    page = served.ask("/e/rollout", headers=[("x-evalpipe-token", TOKEN)]).text
    form = {"step": "approve", "seen": seen_in(page, "approve"), "who": "Bo  Example", "why": "dashboards\nlook fine"}
    done = served.post("/e/rollout/canary", form)
    assert (done.status, done.headers["location"]) == (303, "/e/rollout")
    last = canary.open_history(rollout).events()[-1]
    assert (last.action, last.who, last.why) == ("resume", "Bo Example", "dashboards look fine")
    assert last.state.status is CanaryStatus.RUNNING
    page = served.ask("/e/rollout").text
    assert "Bo Example" in page and "dashboards look fine" in page
    rolled = served.post("/e/rollout/canary", {"step": "rollback", "who": "Bo", "why": "complaints"})
    assert rolled.status == 303  # at once, whatever the page had shown
    assert canary.open_history(rollout).state().status is CanaryStatus.ROLLED_BACK


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"who": ""}, "Who is empty"),
        ({"why": " \t"}, "Why is empty"),
        ({"who": "Controller"}, "the controller&#39;s own name"),
        ({"why": "x" * 501}, "At most 100 characters for who and 500 for why"),
        ({"step": "reset"}, "choose one of approve, pause, rollback"),
        ({"step": "pause"}, "Nothing to pause: the canary is paused"),
        ({"seen": "0-running-10"}, "has changed since this page was made"),
        ({"seen": ""}, "has changed since this page was made"),
    ],
)
def test_a_step_that_cannot_be_done_changes_nothing(
    serve: SERVE, rollout: Workspace, changes: dict[str, str], words: str
) -> None:
    served = serve(rollout.root)
    before = canary.open_history(rollout).events()
    seen = seen_in(served.ask("/e/rollout", headers=[("x-evalpipe-token", TOKEN)]).text, "approve")
    form = {"step": "approve", "seen": seen, "who": "Bo", "why": "fine", **changes}
    done = served.post("/e/rollout/canary", form)
    assert (done.status, words in done.text) == (409, True)
    assert canary.open_history(rollout).events() == before


def test_without_the_token_nothing_can_be_pressed_and_nothing_changes(serve: SERVE, rollout: Workspace) -> None:
    before = canary.open_history(rollout).events()
    for token in (TOKEN, None):
        served = serve(rollout.root, token=token)
        page = served.ask("/e/rollout").text
        assert 'action="/e/' not in page and "evalpipe canary approve" in page
        assert ("Sign in" in page) == (token is not None)
        for path in ("/e/rollout/canary", "/e/rollout/run"):
            done = served.post(path, {"step": "rollback", "who": "Bo", "why": "x"}, token=None)
            assert done.status == (401 if token else 403)
    assert canary.open_history(rollout).events() == before


def test_a_run_is_started_once_and_its_end_is_shown(serve: SERVE, tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(4))
        served = serve(tmp_path)
        assert served.post("/e/t/run", {"who": "Bo", "why": ""}).status == 409
        assert served.post("/e/t/run", {"who": "Bo", "why": "after the fix"}).status == 303
        assert "A run started by Bo is at work" in served.post("/e/t/run", {"who": "Di", "why": "too"}).text

        def has_ended() -> bool:
            return "Ended with exit code 0" in served.ask("/e/t").text

        eventually(has_ended, timeout=90)
        assert len(provider.calls) == 8  # four pairs in both orders: one run
        # What is stored is looked at again after some seconds.
        eventually(lambda: "/e/t/reports/t.html" in served.ask("/e/t").text)
    page = served.ask("/e/t").text
    assert "by <bdi>Bo</bdi>: <bdi>after the fix</bdi>" in page and "report  wrote" in page
    assert (found.reports / "t.html").is_file()


def events_of(served: Served) -> Generator[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", "/events")
    response = connection.getresponse()
    assert response.status == 200 and response.getheader("content-type", "").startswith("text/event-stream")
    try:
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    finally:
        response.close()
        connection.close()


def test_the_counters_of_a_running_collector_are_streamed(
    serve: SERVE, collector: Callable[..., Running], upstream: Callable[[Script], RawUpstream]
) -> None:
    server = upstream(lambda request: [plain(chat_answer())])
    running = collector(server.url, server.url)
    served = serve(running.root)
    stream = events_of(served)
    (key,) = next(stream)["experiments"]
    for _ in range(4):
        chat(running.port)
    wanted = {"requests": "4", "pairs": "4", "failures": "none"}
    deadline = time.monotonic() + 30
    texts: dict[str, str] = {}
    for event in stream:
        texts = event["experiments"][key]["texts"]
        if wanted.items() <= texts.items() or time.monotonic() > deadline:
            break
    assert wanted.items() <= texts.items(), texts
    page = served.ask(f"/e/{key}").text
    assert f'data-live="{key}/requests">4<' in page and f'data-live="{key}/pairs">4<' in page
    assert running.stop() == 0
    for event in stream:
        texts = event["experiments"][key]["texts"]
        if texts["state"] == "no collector" or time.monotonic() > deadline:
            break
    stream.close()
    assert (texts["state"], texts["requests"]) == ("no collector", "–")
    assert "no collector runs: nothing is collected" in served.ask(f"/e/{key}").text.lower()


def test_the_collector_of_another_experiment_is_not_taken_for_ones_own(
    serve: SERVE, collector: Callable[..., Running], upstream: Callable[[Script], RawUpstream], rollout: Workspace
) -> None:
    server = upstream(lambda request: [plain(chat_answer())])
    running = collector(server.url, server.url)
    text = (rollout.root / "evalpipe.toml").read_text().replace("port = 9", f"port = {running.port}")
    (rollout.root / "evalpipe.toml").write_text(text)
    page = serve(rollout.root).ask("/e/rollout").text
    name = open_workspace(root=running.root).require_config().experiment.name
    assert f"of experiment &#39;{name}&#39;" in page and 'data-live="rollout/requests">–<' in page


def test_unknown_addresses_and_methods_are_pages_of_their_own(serve: SERVE, rollout: Workspace) -> None:
    served = serve(rollout.root)
    for path in ("/nothing", "/e/other", "/static/app.py", "/static/../access.py", "/e/rollout/reports/no.html"):
        assert served.ask(path).status == 404, path
    assert served.ask("/e/rollout/canary").status == 405
