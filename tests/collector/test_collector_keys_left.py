"""A canary in every key, and all that a whole run leaves behind is read: spool, Parquet, journal, reports, exports, logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from collector_harness import RawUpstream, Received, Running, Script, plain
from key_cases import ALL, HELD, N_CASES, PARAM, PASSWORD, TOKEN, TREATMENT, answers, forms, left_in, send

from evalpipe.cli.app import main

pytestmark = pytest.mark.uncompiled
START = Callable[..., Running]
UPSTREAM = Callable[[Script], RawUpstream]
JUDGE = "sk-ant-judge-canary-Tt2"
KEYS = {"KEYS_CONTROL": HELD, "KEYS_TREATMENT": TREATMENT, "EVALPIPE_TOKEN": TOKEN, "KEYS_JUDGE": JUDGE}
SCORES = dict.fromkeys(["accuracy", "clarity", "completeness"], 7)


def judged(request: Received) -> Iterable[bytes | float | str]:
    """A judge that repeats its key in its reasoning; of some requests it says, with the key, that they are wrong."""
    sent = request.header("x-api-key") or request.header("authorization") or b"no key"
    key = sent.decode().removeprefix("Bearer ")
    if b"case 4" in request.body:
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": f"not with {key}"}}
        return [plain(json.dumps(error).encode(), status="400 Bad Request")]
    verdict = {"reasoning": f"{key} says so", "response_1": SCORES, "response_2": SCORES, "winner": "tie"}
    answer = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": json.dumps(verdict)}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 100, "output_tokens": 50},
    }
    return [plain(json.dumps(answer).encode())]


Evalpipe = Callable[..., tuple[int, str, str]]
"""(arguments) → exit code, stdout, stderr"""


@pytest.fixture
def evalpipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Evalpipe:
    """The command line in the folder of the test's first workspace."""
    root = tmp_path / "workspace0"
    root.mkdir(exist_ok=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("EVALPIPE_DATA", str(root / "data"))
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["shadow", "ab"])
def test_a_whole_run_leaves_no_key_behind(upstream: UPSTREAM, collector: START, evalpipe: Evalpipe, mode: str) -> None:
    control, treatment, judge = upstream(answers), upstream(answers), upstream(judged)
    running = collector(
        f"http://user:{PASSWORD}@127.0.0.1:{control.port}",
        treatment.url,
        mode=mode,
        experiment="treatment_percent = 50" if mode == "ab" else "",
        arm='api_key_env = "KEYS_CONTROL"',
        treatment_arm=f'api_key_env = "KEYS_TREATMENT"\nparams = {{ extra_api_key = "{PARAM}" }}\n'
        f'[judge]\nbase_url = "{judge.url}"\napi_key_env = "KEYS_JUDGE"\nmax_usd = 1.0\nmodel = "claude-haiku-4-5"',
        env=KEYS,
    )
    for number in [*range(N_CASES), 2, 3, 4]:
        send(running, number)
    assert running.stop() == 0
    root = running.root
    said: dict[str, str] = {"collect": "".join(running.lines)}

    def run(*arguments: str) -> str:
        status, out, error = evalpipe(*arguments)
        said[" ".join(arguments)] = out + error
        assert status == 0, (arguments, out, error)
        return out

    run("load")
    n = int(run("sql", "--format", "csv", "SELECT count(*) FROM exchanges").split()[-1])
    assert n == (N_CASES + 3) * (2 if mode == "shadow" else 1)
    if mode == "shadow":
        run("judge")
        assert any(JUDGE.encode() in request.head for request in judge.received)
        replies = run("sql", "--format", "json", "FROM judgments")
        assert "[key] says so" in replies, replies
    run("report")
    run("report", "--format", "markdown", "--output", "mailed.md")
    run("report", "--format", "json")
    run("report", "--format", "csv")
    said["doctor"] = "".join(evalpipe("doctor")[1:])
    (root / "export.json").write_text(run("sql", "--format", "json", "FROM exchanges"))
    assert "[key]" in (root / "export.json").read_text()
    every = [*ALL, JUDGE]
    found = {
        name: [key for key in every if any(form in text for form in forms(key).values())] for name, text in said.items()
    }
    assert {name: held for name, held in found.items() if held} == {}
    assert left_in(root, keys=every) == {}
    modes = {
        path: path.stat().st_mode & 0o077 for path in [root / "data", *_files(root / "data"), *_files(root / "reports")]
    }
    assert {str(path) for path, mode in modes.items() if mode} == set()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_key_that_lies_in_older_data_is_not_mailed(tmp_path: Path, evalpipe: Evalpipe) -> None:
    """A log of another tool, or of an earlier version, may hold what is masked today."""
    root = tmp_path / "workspace0"
    pair = {"pair_id": "p", "prompt": "hi", "response_a": f"your key is {HELD}", "response_b": "b", "label": "a"}
    (root / "old.jsonl").write_text(json.dumps(pair))
    (root / "evalpipe.toml").write_text(
        '[experiment]\nname = "old"\n[arms.control]\nprovider = "openai"\napi_key_env = "KEYS_CONTROL"\n'
        f'params = {{ api_key = "{PARAM}", max_tokens = 77 }}\nbase_url = "http://user:{PASSWORD}@127.0.0.1:1/v1"\n'
    )
    assert evalpipe("load", "--format", "pairs", "old.jsonl")[0] == 0
    status, out, error = evalpipe("report")
    assert status == 0 and "key of this workspace" in error
    written = [(root / "reports" / name).read_text() for name in ("old.html", "old.json")]
    for text in (*written, out, error, *evalpipe("report", "--format", "markdown")[1:]):
        assert not any(key in text for key in (HELD, PARAM, PASSWORD))
    page, document = written
    assert "your key is [key]" in page
    provenance = json.loads(document)["provenance"]["config"]["arms"]["control"]
    assert provenance["params"] == {"api_key": "[key]", "max_tokens": 77}
    assert provenance["base_url"] == "http://127.0.0.1:1/v1" and provenance["api_key_env"] == "KEYS_CONTROL"


@pytest.mark.parametrize(
    "line",
    [
        'api_key = "sk-CLIENTSECRET99xyz"',
        'api_key_env = "sk-CLIENTSECRET99xyz"',
        'api_key_env = "gsk_CLIENTSECRET99xyz0123456789"',
        'base_url = "https://host/v1?key=CLIENTSECRET99xyz"',
        'base_url = "ftp://user:CLIENTSECRET99xyz@host/v1"',
        'base_url = "http://user:CLIENTSECRET99xyz@127.0.0.1:1/v1"',
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(tmp_path: Path, evalpipe: Evalpipe, line: str) -> None:
    config = f'[experiment]\nname = "x"\n[arms.control]\nprovider = "openai"\n{line}\n'
    (tmp_path / "workspace0/evalpipe.toml").write_text(config)
    status, out, error = evalpipe("doctor")
    assert status != 0 and "CLIENTSECRET99xyz" not in out + error
    assert len(error.splitlines()) <= 1
