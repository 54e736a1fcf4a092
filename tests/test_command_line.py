"""The command line as a user meets it: one clear line for every mistake, help with an example; what listens or is interrupted, in
a process of its own."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_here
from warm_start import evalpipe_program

from evalpipe.cli import demo
from evalpipe.cli.app import COMMANDS, main
from evalpipe.spool.format import Body, RequestRecord, ResponseRecord, render_record
from evalpipe.workspace.doctor import check_judges
from evalpipe.workspace.paths import init_workspace, open_workspace

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
[experiment]
name = "try"
[arms.control]
provider = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "m"
[arms.treatment]
provider = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "n"
"""
PAIR = {
    "pair_id": "p1",
    "prompt": "Say hi",
    "response_a": "hi",
    "response_b": "hello",
    "label": "a",
    "label_source": "test",
}


run = run_here


def run_apart(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")} | (env or {})
    return subprocess.run(
        [evalpipe_program(), *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of an error, after checking that it is one, and no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("evalpipe: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "evalpipe.toml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("command", [name for name, _, _ in COMMANDS])
def test_every_command_has_help_with_an_example(command: str, tmp_path: Path) -> None:
    done = run(command, "--help", cwd=tmp_path, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert re.search(rf"evalpipe {command}\b", done.stdout.split("Usage:", 1)[-1].split("\n", 1)[1]), "no example"


def test_every_command_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    missing = [name for name, _, _ in COMMANDS if f"evalpipe {name}" not in readme]
    assert not missing


def test_a_wrong_config_key_names_the_nearest(workspace: Path) -> None:
    (workspace / "evalpipe.toml").write_text(CONFIG + "\n[colector]\nport = 1\n")
    assert "unknown key colector; did you mean 'collector'?" in one_line(run("report", cwd=workspace), 2)


def test_no_workspace_says_how_to_make_one(tmp_path: Path) -> None:
    assert "evalpipe init" in one_line(run_apart("collect", cwd=tmp_path), 2)


def test_a_missing_key_is_told_before_anything_is_sent(workspace: Path) -> None:
    (workspace / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    assert run("load", "pairs.jsonl", cwd=workspace).returncode == 0
    assert "ANTHROPIC_API_KEY" in one_line(run("judge", cwd=workspace), 2)


def test_a_missing_arm_key_is_told_before_the_collector_listens(workspace: Path) -> None:
    text = CONFIG + 'api_key_env = "EVALPIPE_TEST_ABSENT_KEY"\n'
    (workspace / "evalpipe.toml").write_text(text)
    line = one_line(run_apart("collect", "--port", "0", cwd=workspace), 2)
    assert "EVALPIPE_TEST_ABSENT_KEY" in line


def test_a_port_in_use_is_one_line(workspace: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_apart("collect", "--port", str(port), cwd=workspace)
    line = one_line(done, done.returncode)
    assert done.returncode in (1, 2)
    assert str(port) in line


@pytest.mark.parametrize("command", [["load", "pairs.jsonl"], ["collect", "--port", "0"]])
def test_an_unwritable_data_folder_is_one_line(workspace: Path, command: list[str]) -> None:
    (workspace / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    (workspace / "file").write_text("not a folder")
    line = one_line(run_apart(*command, "--data", "file/data", cwd=workspace), 2)
    assert "file/data" in line


def test_the_gate_of_an_empty_log_is_an_error(workspace: Path) -> None:
    assert "evalpipe collect" in one_line(run("gate", cwd=workspace), 2)


def test_the_gate_of_a_folder_without_workspace_is_an_error(tmp_path: Path) -> None:
    done = run("gate", cwd=tmp_path)
    one_line(done, done.returncode)
    assert done.returncode in (1, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["report", "judge", "load", "plan"])
def test_the_wrong_folder_is_said_and_left_as_it_was(tmp_path: Path, command: str) -> None:
    done = run(command, cwd=tmp_path)
    assert "right folder?" in one_line(done, done.returncode) and done.returncode in (1, 2)
    assert not list(tmp_path.iterdir())


def test_the_gate_of_an_experiment_that_is_not_there_is_an_error(workspace: Path) -> None:
    (workspace / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    assert run("load", "pairs.jsonl", cwd=workspace).returncode == 0
    run("gate", cwd=workspace)
    verdict = (workspace / "data" / "verdict.json").read_bytes()
    assert "'nosuch'" in one_line(run("gate", "-e", "nosuch", cwd=workspace), 2)
    assert (workspace / "data" / "verdict.json").read_bytes() == verdict


@pytest.mark.parametrize("command", ["report", "judge", "load"])
def test_an_empty_log_is_one_line(workspace: Path, command: str) -> None:
    done = run(command, cwd=workspace, env={"ANTHROPIC_API_KEY": "k"})
    one_line(done, 1 if command == "load" else 2)


def test_one_arm_missing_is_said_in_the_report(workspace: Path) -> None:
    """A log of control alone (no treatment was configured yet): nothing is compared, and the report says so."""
    lines = []
    for n in range(3):
        body = Body.of(json.dumps({"model": "m", "messages": [{"role": "user", "content": f"hi {n}"}]}).encode())
        answer = {
            "model": "m",
            "choices": [{"message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}],
        }
        name = {"request_id": f"r{n}", "experiment": "try", "arm": "control", "endpoint": "chat.completions"}
        lines.append(RequestRecord(**name, mode="shadow", received_at=1.7e9 + n, body=body))
        lines.append(
            ResponseRecord(
                **name, role="served", provider="openai", started_at=1.7e9 + n, ended="complete", latency_ms=5, status=200,
                body=Body.of(json.dumps(answer).encode()),
            )
        )  # fmt: skip
    (workspace / "log.jsonl").write_bytes(b"".join(map(render_record, lines)))
    assert run("load", "log.jsonl", cwd=workspace).returncode == 0
    done = run("report", "--json", cwd=workspace)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["decision"]["recommendation"] in ("collect_more", "invalid")
    error_rate = next(metric for metric in report["metrics"] if metric["name"] == "error_rate")
    assert error_rate["finding"] == "undefined"
    assert error_rate["status"] in ("missing_arm", "no_data")
    assert report["funnel"]["requests"] == 3
    assert report["funnel"]["pairs"] == 0
    assert "treatment" in " ".join(report["decision"]["reasons"])


def test_an_unknown_option_is_a_usage_error(tmp_path: Path) -> None:
    done = run("report", "--no-such-option", cwd=tmp_path)
    assert "--no-such-option" in one_line(done, 2)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("reprot", "no such command 'reprot'; did you mean 'report'? see `evalpipe --help`"),
        ("canary rn", "no such command 'rn'; did you mean 'run'? see `evalpipe canary --help`"),
        ("report --opne", "report has no option --opne; did you mean --open? `evalpipe report --help` lists those there are"),
        ("canary run --xyz", "canary run has no option --xyz; `evalpipe canary run --help` lists those there are"),
        ("judge --max-usd abc", "--max-usd 'abc': must be a number; see `evalpipe judge --help`"),
        ("judge --max-usd=-1", "--max-usd '-1': must be greater than or equal to 0; see `evalpipe judge --help`"),
        ("judge --max-usd", "option '--max-usd' needs a value; see `evalpipe judge --help`"),
        ("collect --port 1.5", "--port '1.5': must be a whole number; see `evalpipe collect --help`"),
        ("report --format xml", "--format 'xml': must be one of 'html', 'markdown', 'json', 'csv'; see `evalpipe report --help`"),
        ("forget", "missing option '--user'; see `evalpipe forget --help`"),
        ("replay old.jsonl", "unexpected argument (old.jsonl); see `evalpipe replay --help`"),
    ],
)  # fmt: skip
def test_what_the_parser_refuses_is_one_line_with_the_value_and_the_nearest_name(
    words: str, line: str, tmp_path: Path
) -> None:
    done = run(*words.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"evalpipe: {line}\n")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ('port = "abc"', "collector.port = 'abc': must be a whole number"),
        ('idle_timeout_s = "long"', "collector.idle_timeout_s = 'long': must be a number"),
        ("fsync_interval_s = [1]", "collector.fsync_interval_s = [1]: must be a number"),
        ('hash_units = "perhaps"', "collector.hash_units = 'perhaps': must be true or false"),
        ("host = 127", "collector.host = 127: must be a text in quotes"),
        ('redact = "email"', "collector.redact = 'email': must be a list: [ … ]"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named_with_what_it_must_be(setting: str, line: str, workspace: Path) -> None:
    (workspace / "evalpipe.toml").write_text(f"{CONFIG}\n[collector]\n{setting}\n")
    assert line in one_line(run("doctor", cwd=workspace), 2)


def test_doctor_finds_what_would_fail(workspace: Path) -> None:
    done = run("doctor", "--json", cwd=workspace)
    assert done.returncode == 1
    found = {item["name"]: item for item in json.loads(done.stdout)}
    assert found["upstream control"]["status"] == "fail"
    assert "http://127.0.0.1:9/v1" in found["upstream control"]["detail"]
    assert found["price control"]["status"] == "warn"
    assert found["folder data"]["status"] == "pass"


def test_init_then_doctor_reads_the_template(tmp_path: Path) -> None:
    assert run("init", "w", "--name", "first", cwd=tmp_path).returncode == 0
    done = run("doctor", "--json", cwd=tmp_path / "w", env={"ANTHROPIC_API_KEY": "k"})
    names = [item["name"] for item in json.loads(done.stdout)]
    assert "judge" in names
    assert "key arms.treatment" in names


def test_the_template_judges_neither_arm_with_its_own_kind(tmp_path: Path) -> None:
    """What `init` writes needs no warning; a judge that is an arm's model, or of one arm's family, gets one."""

    init_workspace(tmp_path / "w")
    config = tmp_path / "w/evalpipe.toml"

    def of_the_judge() -> list[tuple[str, str]]:
        found = open_workspace(config)
        return [(one.status, one.detail) for one in check_judges(found, found.require_config())]

    ((status, detail),) = of_the_judge()
    assert status == "pass" and "claude-haiku-4-5" in detail
    template = config.read_text()
    for model, words in (
        ("openai/gpt-4o-mini-2024-07-18", "is the very model of the treatment arm: judges prefer their own answers"),
        ("claude-haiku-4-5", "is the very model of the treatment arm"),
        ("claude-opus-4-8", "is of the same family as treatment: judges prefer their own kind"),
    ):
        text = template if "gpt" in model else template.replace('model = "gpt-4o-mini"', 'model = "claude-haiku-4-5"')
        config.write_text(text.replace("[judge]\n", f'[judge]\nmodel = "{model}"\n'))
        _, (status, detail) = of_the_judge()
        assert status == "warn" and words in detail, detail


def test_a_port_in_use_is_the_one_line(workspace: Path) -> None:
    """No warning about costs goes before an error that ends the collector."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_apart("collect", "--port", str(taken.getsockname()[1]), cwd=workspace)
    assert "cannot listen on" in one_line(done, 2)
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.serial
def test_an_interrupted_command_says_so(workspace: Path) -> None:
    command = [sys.executable, "-m", "evalpipe", "gate", "--watch", "1"]
    with subprocess.Popen(command, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "collect_more" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.startswith("evalpipe: interrupted") and error.count("\n") == 1


@pytest.mark.serial
def test_an_interrupted_query_ends_at_once(workspace: Path) -> None:
    (workspace / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n", "utf-8")
    run("load", "pairs.jsonl", cwd=workspace)
    endless = "select count(*) from range(10000000) a, range(10000000) b where a.range * b.range = -1"
    command = [sys.executable, "-m", "evalpipe", "sql", endless]
    with subprocess.Popen(command, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=4)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert error.startswith("evalpipe: interrupted") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (RuntimeError("Query interrupted"), 130, "interrupted; what was stored is kept"),
        (OSError(errno.EROFS, "Read-only file system", "data/.load.lock"), 1, "data/.load.lock: Read-only file system"),
    ],
)
def test_an_error_of_the_system_is_one_line(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: Exception,
    code: int,
    words: str,
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.chdir(workspace)
    monkeypatch.setattr("evalpipe.workspace.query.sql", failing)
    with pytest.raises(SystemExit) as ended:
        main(["sql", "select 1"])
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (code, 1)
    assert words in error


def test_the_judges_commands_and_the_flags_they_once_were(workspace: Path) -> None:
    (workspace / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n", "utf-8")
    run("load", "pairs.jsonl", "--experiment", "try", cwd=workspace)
    listed = [run("judge", word, "--json", cwd=workspace) for word in ("list", "--list")]
    assert listed[0].stdout == listed[1].stdout
    assert "pairwise" in {one["name"] for one in json.loads(listed[0].stdout)["judges"]}
    for word in ("audit", "--audit"):
        assert "no pairwise judgments to audit" in one_line(run("judge", word, cwd=workspace), 1)
    for words in (["show-prompt", "p1"], ["--show-prompt=p1"], ["--show-prompt", "p1"]):
        assert "Say hi" in run("judge", *words, cwd=workspace).stdout
    assert "one at a time" in one_line(run("judge", "--audit", "--list", cwd=workspace), 2)
    assert "--estimate and --status exclude" in one_line(
        run("judge", "--estimate", "--batch", "--status", cwd=workspace), 2
    )


def test_alone_in_an_empty_folder_it_shows_three_ways_to_start(tmp_path: Path, workspace: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(cwd=empty)
    assert done.returncode == 0
    assert [
        words for words in ("evalpipe demo", "evalpipe compare", "evalpipe collect") if words not in done.stdout
    ] == []
    in_workspace = run(cwd=workspace)
    assert "Usage: evalpipe" in in_workspace.stdout + in_workspace.stderr


def test_the_help_lists_every_command_and_needs_no_heavy_import(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path, env={"COLUMNS": "80"})
    assert done.returncode == 0
    assert [name for name, _, _ in COMMANDS if f"\n  {name} " not in done.stdout] == []
    assert max(map(len, done.stdout.split("Options:")[0].splitlines())) <= 80
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, contextlib, io\nfrom evalpipe.cli.app import main\n"
         "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
         "print([name for name in ('rich', 'pydantic', 'numpy', 'duckdb', 'asyncio', 'markdown_it') if name in sys.modules])"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert loaded.stdout.strip() == "[]", loaded.stderr


def test_the_shell_completes_commands(tmp_path: Path) -> None:
    done = run_apart(
        cwd=tmp_path, env={"_EVALPIPE_COMPLETE": "complete_bash", "COMP_WORDS": "evalpipe re", "COMP_CWORD": "1"}
    )
    assert done.stdout.split() == ["replay", "report"]


def test_a_data_folder_that_is_not_there_is_named(workspace: Path) -> None:
    line = one_line(run("report", "--data", "NOWHERE", cwd=workspace), 2)
    assert "no folder NOWHERE" in line
    assert "--data" in line


def test_a_port_in_use_is_exit_code_2_for_the_simulator_as_for_the_collector(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_apart("sim", "--port", str(port), cwd=tmp_path)
    assert (
        one_line(done, 2)
        == f"evalpipe: cannot listen on 127.0.0.1:{port}: address already in use; choose another with --port"
    )


def test_the_template_s_judge_is_of_neither_arm_s_family(tmp_path: Path) -> None:
    assert run("init", ".", cwd=tmp_path).returncode == 0
    shown = json.dumps(json.loads(run("doctor", "--json", cwd=tmp_path).stdout))
    assert "judges prefer" not in shown
    assert "gpt-4o-mini: a price is known" in shown


def test_a_folder_inside_a_workspace_names_the_workspace(workspace: Path) -> None:
    inside = workspace / "reports"
    inside.mkdir()
    for command, code in (("report", 2), ("plan", 2), ("doctor", 2), ("load", 1)):
        assert f"the workspace around it is {workspace}: cd there" in one_line(run(command, cwd=inside), code)
    for command in ("collect", "run", "serve"):
        line = one_line(run_apart(command, cwd=inside), 2)
        assert f"the workspace around it is {workspace}: cd there" in line
        assert "init" not in line


def test_a_wrong_condition_names_the_columns_there_are(workspace: Path) -> None:
    (workspace / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    assert run("load", "pairs.jsonl", cwd=workspace).returncode == 0
    line = one_line(run("report", "--where", "modl = 1", cwd=workspace), 2)
    assert '"model"' in line
    unknown = one_line(run("judge", "show-prompt", "nope", cwd=workspace, env={"ANTHROPIC_API_KEY": "k"}), 1)
    assert "select request_id from pairs" in unknown


@pytest.mark.parametrize(
    ("started", "on_path", "wanted"),
    [
        ("x/.venv/bin/evalpipe", None, "../x/.venv/bin/evalpipe"),
        ("x/.venv/bin/evalpipe", "/usr/bin/evalpipe", "evalpipe"),
        ("x/evalpipe/__main__.py", None, f"{sys.executable} -m evalpipe"),
    ],
)
def test_the_demo_ends_with_a_line_that_can_be_pasted(
    started: str, on_path: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / started
    program.parent.mkdir(parents=True)
    program.touch()
    bin_folder = tmp_path / "on-path"
    bin_folder.mkdir()
    if on_path:
        (bin_folder / "evalpipe").write_text("#!/bin/sh\n")
        (bin_folder / "evalpipe").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setattr(sys, "argv", [started])
    assert demo.program_for(Path("evalpipe-demo")) == wanted
