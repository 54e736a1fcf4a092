"""The GitHub Action and the GitLab job of docs/ci: their shell steps, run as the CI systems run them, against a fake API."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from fake_provider import FakeProvider, longer_wins
from test_judging_run import pairs, workspace
from warm_start import evalpipe_program

CI = Path(__file__).resolve().parents[2] / "docs" / "ci"
ACTION = yaml.safe_load((CI / "github" / "action.yml").read_text("utf-8"))
JOB = yaml.safe_load((CI / "gitlab" / "evalpipe.gitlab-ci.yml").read_text("utf-8"))["evalpipe"]
TOKEN = "token-of-the-job"


class FakeApi:
    """Comments of one pull request. `others`: ids that may not be changed."""

    def __init__(self) -> None:
        self.comments: list[dict[str, Any]] = []
        self.others: set[int] = set()
        self.asked: list[tuple[str, str]] = []
        self.refused = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, status: int, document: Any) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _serve(self) -> None:
                parts = urlsplit(self.path)
                api.asked.append((self.command, parts.path))
                shown = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get(
                    "PRIVATE-TOKEN"
                )
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if shown != TOKEN:
                    api.refused += 1
                    return self._answer(401, {"message": "Bad credentials"})
                if self.command == "GET":
                    query = parse_qs(parts.query)
                    n, page = int(query["per_page"][0]), int(query["page"][0])
                    return self._answer(200, api.comments[n * (page - 1) : n * page])
                if self.command == "POST":
                    api.comments.append({"id": 1000 + len(api.comments), **json.loads(body)})
                    return self._answer(201, api.comments[-1])
                number = int(parts.path.rpartition("/")[2])
                if number in api.others:
                    return self._answer(403, {"message": "not yours"})
                (found,) = (one for one in api.comments if one["id"] == number)
                found |= json.loads(body)
                return self._answer(200, found)

            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def do_PATCH(self) -> None:
                self._serve()

            def do_PUT(self) -> None:
                self._serve()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    found = FakeApi()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(longer_wins) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path, provider: FakeProvider) -> Path:
    """A workspace with an empty log, pairs to load, and `evalpipe` and `python` on a path of its own."""
    workspace(tmp_path, provider.url, [])
    (tmp_path / "new pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs(4)))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs(6)))
    (tmp_path / "bin").mkdir()
    for name, program in (("evalpipe", evalpipe_program()), ("python", sys.executable)):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GITHUB_", "CI_", "EVALPIPE_"))}
    return {**kept, "PATH": f"{folder / 'bin'}:/usr/bin:/bin", **more}


def action(
    folder: Path, api: FakeApi, *, pull_request: str = "7", only: str | None = None, **inputs: str
) -> tuple[int, str]:
    """Run the steps (`only`: one of them) as a composite action's; the exit code of the first that fails, and what is printed."""
    given = {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()}
    given |= {"install": "", "token": TOKEN, "working-directory": str(folder)} | {
        name.replace("_", "-"): value for name, value in inputs.items()
    }
    contexts = {f"inputs.{name}": value for name, value in given.items()}
    contexts |= {"github.event.pull_request.number": pull_request, "github.action_path": str(CI / "github")}

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ ([^}]+) \}\}", lambda found: contexts[found[1]], text)

    printed = ""
    for step in ACTION["runs"]["steps"]:
        if only not in {None, step["name"]}:
            continue
        script = folder / "step.sh"
        script.write_text(step["run"])
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=filled(step.get("working-directory", str(folder))),
            env=environment(
                folder,
                GITHUB_API_URL=api.url,
                GITHUB_REPOSITORY="team/shop",
                RUNNER_TEMP=str(folder),
                GITHUB_STEP_SUMMARY=str(folder / "summary.md"),
                GITHUB_OUTPUT=str(folder / "output"),
                **{name: filled(value) for name, value in step.get("env", {}).items()},
            ),
            capture_output=True,
            text=True,
            timeout=120,
        )
        printed += done.stdout + done.stderr
        if done.returncode:
            return done.returncode, printed
    return 0, printed


def test_no_input_is_written_into_a_script() -> None:
    """An expression in a script is a hole: what a pull request names would run."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"], step["name"]
        assert step["shell"] == "bash"


def test_the_comment_is_written_once_then_updated_and_the_gate_fails_the_job(folder: Path, api: FakeApi) -> None:
    api.comments = [{"id": n, "body": f"<!-- evalpipe: another --> comment {n}"} for n in range(120)]
    code, printed = action(folder, api, experiment="pr", files="pairs.jsonl")
    assert (code, "::error::evalpipe recommends collect_more" in printed) == (1, True), printed
    assert "wrote comment 1120" in printed  # before the gate
    first = api.comments[-1]["body"]
    assert first.startswith("<!-- evalpipe: pr -->\n## pr: Collect more data")
    assert (folder / "summary.md").read_text() == first.partition("\n")[2]
    assert (folder / "output").read_text() == "recommendation=collect_more\n"
    (folder / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs(9)))
    code, printed = action(folder, api, experiment="pr", files="pairs.jsonl", fail_on="keep invalid")
    assert (code, len(api.comments)) == (0, 121), printed
    assert "updated comment 1120" in printed and "9 judged pairs" in api.comments[-1]["body"].replace("\u00a0", " ")
    paths = {path for _, path in api.asked}
    assert paths == {"/repos/team/shop/issues/7/comments", "/repos/team/shop/issues/comments/1120"}
    assert api.refused == 0


def test_somebody_elses_comment_with_the_same_mark_is_left_alone(folder: Path, api: FakeApi) -> None:
    (folder / "evalpipe.md").write_text("## pr: Keep control\n" + "long " * 20_000)
    api.comments = [{"id": 5, "body": "<!-- evalpipe: pr -->\nShip it!"}]
    api.others = {5}
    code, printed = action(folder, api, only="Comment", experiment="pr")
    assert code == 0, printed
    assert [one["id"] for one in api.comments] == [5, 1001]
    assert api.comments[0]["body"].endswith("Ship it!")
    assert 60_000 < len(api.comments[1]["body"]) < 65_536 and "cut: the report has the rest" in api.comments[1]["body"]


def test_outside_of_a_pull_request_or_when_not_wanted_nothing_is_written(folder: Path, api: FakeApi) -> None:
    assert action(folder, api, only="Comment", experiment="pr", pull_request="")[0] == 0
    assert action(folder, api, only="Comment", experiment="pr", comment="false")[0] == 0
    assert api.asked == []


def test_a_comment_that_cannot_be_written_is_one_line_and_a_failed_step(folder: Path, api: FakeApi) -> None:
    (folder / "evalpipe.md").write_text("## pr: Keep control\n")
    code, printed = action(folder, api, only="Comment", experiment="pr", token="wrong")
    assert (code, printed.count("\n")) == (1, 1)
    assert "comment.py: the comment could not be written: HTTP Error 401" in printed and "wrong" not in printed


def test_a_failure_is_a_failed_step_and_not_a_recommendation(folder: Path, api: FakeApi) -> None:
    code, printed = action(folder, api, experiment="pr", files="not-there.jsonl", fail_on="")
    assert code != 0 and "not-there.jsonl" in printed
    assert api.comments == [] and not (folder / "output").exists()
    hostile = "pr; touch HACKED $(touch HACKED)"
    assert action(folder, api, experiment=hostile, files="pairs.jsonl", fail_on="")[0] == 2
    assert not (folder / "HACKED").exists()


def test_the_gitlab_job_does_the_same(folder: Path, api: FakeApi) -> None:
    variables = {**JOB["variables"], "EXPERIMENT": "mr", "INSTALL": "", "FILES": "pairs.jsonl"}
    variables |= {"COMMENT_SCRIPT": str(CI / "comment.py"), "CI_API_V4_URL": api.url, "CI_PROJECT_ID": "42"}
    variables |= {"CI_MERGE_REQUEST_IID": "3", "EVALPIPE_GITLAB_TOKEN": TOKEN}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", "\n".join(JOB["script"])],
            cwd=folder,
            env=environment(folder, **variables),
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = run()
    assert (done.returncode, "evalpipe recommends collect_more" in done.stdout) == (1, True), done.stderr
    assert api.comments[0]["body"].startswith("<!-- evalpipe: mr -->\n## mr: ")
    again = [sys.executable, str(CI / "comment.py"), "gitlab", "evalpipe.md", "mr"]
    done = subprocess.run(
        again, cwd=folder, env=environment(folder, **variables), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "updated comment 1000\n"), done.stderr
    assert {path for _, path in api.asked} == {
        "/projects/42/merge_requests/3/notes",
        "/projects/42/merge_requests/3/notes/1000",
    }
