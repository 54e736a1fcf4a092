"""The documents are true: their commands run, their options exist, their configurations are valid, their links lead somewhere.

A fenced block is preceded by a comment that states what the tests do with it:

- `<!-- test: NAME -->`: run, together with the other blocks of that name on the page, in one shell
- `<!-- background: NAME -->`: the same, but started beside the following ones
- `<!-- same: PAGE -->`: not run here: each of its commands is among those that run on that page
- `<!-- file: PATH -->`: written to that file before the page's blocks run
- `<!-- skip: REASON -->`: not run; its commands and options are checked against the program all the same
- `<!-- judge: NAME -->`: a TOML block that is a judge's file
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from warm_start import evalpipe_program

from evalpipe.cli.app import build_app
from evalpipe.config import read_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RUN = {"sh", "bash", "python"}
KEY = "a-key-for-tests"
pytestmark = pytest.mark.timeout(600)  # seconds on a quiet machine, minutes on a busy one


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    mark: str
    about: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text("utf-8").splitlines()
    at = 0
    while at < len(lines):
        opened = re.fullmatch(r"(\s*)```(\w*)", lines[at])
        if not opened:
            at += 1
            continue
        end = next(i for i in range(at + 1, len(lines)) if lines[i] == f"{opened[1]}```")
        above = re.fullmatch(r"\s*<!-- (\w+): (.+) -->", lines[at - 1]) if at else None
        yield Block(
            page=page,
            line=at + 1,
            language=opened[2],
            text=textwrap.dedent("\n".join(lines[at + 1 : end])) + "\n",
            mark=above[1] if above else "",
            about=above[2] if above else "",
        )
        at = end + 1


BLOCKS = [block for page in PAGES if page.parent.name != "reference" for block in blocks_of(page)]


def test_every_block_that_could_run_runs_or_has_a_reason_not_to() -> None:
    bare = [
        str(block)
        for block in BLOCKS
        if block.language in RUN and block.mark not in {"test", "background", "skip", "same"}
    ]
    assert not bare


# ------------------------------------------------------------------------------------------------ commands and options


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of every `evalpipe …` in a shell text or between backticks."""
    for line in text.splitlines():
        for part in re.split(r"&&|\|\||[|;()]|\bthen\b|\$\(", line.split(" #", 1)[0].split("\t#", 1)[0]):
            words = part.strip()
            words = re.sub(r"^(\S*/)?evalpipe\b", "evalpipe", words)
            if words.startswith("evalpipe "):
                words = words.replace("…", "X").split(" > ")[0].split(" >> ")[0]
                try:
                    yield shlex.split(words)[1:]
                except ValueError:
                    yield words.split()[1:]


@pytest.fixture(scope="module")
def program() -> Any:
    return get_command(build_app())


def problem_with(program: Any, words: list[str]) -> str | None:
    """What is wrong with a command line: an unknown command or option."""
    command, path = program, ["evalpipe"]
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            if len(path) > 1:  # a command with commands of its own that takes arguments, too
                break
            return f"no command {rest[0]!r}"
        path.append(rest[0])
        command = command.commands[rest.pop(0)]
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
    if len(path) == 1:
        known |= {"--install-completion", "--show-completion"}
    for word in rest:
        name = word.split("=", 1)[0]
        if re.fullmatch(r"--?[a-z][a-z-]*", name) and name not in known:
            return f"{' '.join(path)} has no option {name!r}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_exists(page: Path, program: Any) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("it names what was, too")
    text = page.read_text("utf-8")
    shown = [block.text for block in blocks_of(page) if block.language in {"sh", "bash", "yaml", "text", "ini"}]
    inline = re.findall(r"(?<!`)`(evalpipe [^`\n]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    problems = [
        f"{' '.join(words)}: {problem}"
        for piece in (*shown, *inline)
        for words in commands_in(piece)
        if (problem := problem_with(program, words))
    ]
    assert not problems


def test_the_check_of_options_finds_a_wrong_one(program: Any) -> None:
    assert problem_with(program, ["report", "--opne"]) == "evalpipe report has no option '--opne'"
    assert problem_with(program, ["reprot"]) == "no command 'reprot'"
    assert problem_with(program, ["canary", "approve", "--why", "x"]) is None
    assert list(commands_in("cd x && evalpipe load --arm new | cat  # evalpipe no")) == [["load", "--arm", "new"]]


def test_what_another_page_runs_is_the_same_there() -> None:
    found = [block for block in BLOCKS if block.mark == "same"]
    assert found
    for block in found:
        there = "\n".join(one.text for one in blocks_of(ROOT / block.about) if one.mark in {"test", "background"})
        run = [words[:1] if words[0] == "init" else words for words in commands_in(there)]
        shown = [words[:1] if words[0] == "init" else words for words in commands_in(block.text)]
        assert [words for words in shown if words not in run] == []


# ------------------------------------------------------------------------------------------------ data in the documents


def merged(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in other.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=str)
def test_every_configuration_is_valid(block: Block, tmp_path: Path, tools: Path) -> None:
    if block.mark == "judge":
        (tmp_path / "judges").mkdir()
        (tmp_path / "judges" / f"{block.about}.toml").write_text(block.text, "utf-8")
        assert block.about in run_script("evalpipe init . && evalpipe judge list", tmp_path, tools)
        return
    arm = {"provider": "openai", "model": "m"}
    base = {"experiment": {"name": "docs"}, "arms": {"control": arm, "treatment": arm}}
    read_config(merged(base, tomllib.loads(block.text)))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in {"json", "yaml"}], ids=str)
def test_every_data_block_can_be_read(block: Block) -> None:
    if block.language == "yaml":
        assert yaml.safe_load(block.text)
    else:
        assert all(json.loads(line) for line in block.text.splitlines())


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_every_python_block_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


# ------------------------------------------------------------------------------------------------ links


def anchors_of(page: Path) -> set[str]:
    """The ids of a page's headings, as Python-Markdown makes them."""
    found = set()
    for line in re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL).splitlines():
        heading = re.fullmatch(r"#+ (.*?)(?:\s*\{ #([\w-]+) \})?", line)
        if heading:
            words = re.sub(r"[^\w\s-]", "", heading[1]).strip().lower()
            found.add(heading[2] or re.sub(r"[-\s]+", "-", words))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text):
        link = target[0] or target[1]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors_of(file)):
            broken.append(link)
    assert not broken


def test_every_page_that_the_code_cites_is_there() -> None:
    broken = []
    for path in [*(ROOT / "evalpipe").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for page, anchor in re.findall(r"(?<![\w/.])(docs/[\w/-]+\.md)(?:#([\w-]+))?", path.read_text("utf-8")):
            if not (ROOT / page).exists() or (anchor and anchor not in anchors_of(ROOT / page)):
                broken.append(f"{path.relative_to(ROOT)}: {page}#{anchor}")
    assert not broken


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    missing = [
        str(page.relative_to(ROOT / "docs"))
        for page in PAGES
        if page.is_relative_to(ROOT / "docs") and str(page.relative_to(ROOT / "docs")) not in text
    ]
    assert not missing


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 9 * 1024


@pytest.mark.parametrize("name", ["report-light.png", "report-dark.png"])
def test_the_picture_is_small(name: str) -> None:
    assert (ROOT / "docs" / "assets" / name).stat().st_size <= 200 * 1024


def test_the_generated_references_are_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------ running


def _environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.endswith(("_API_KEY", "_BASE_URL"))}
    kept.pop("EVALPIPE_DATA", None)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "TERM": "dumb"} | more


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the commands that the documents call: evalpipe and python of this checkout."""
    folder = tmp_path_factory.mktemp("bin")
    for name, words in (("evalpipe", evalpipe_program()), ("python", sys.executable)):
        (folder / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@contextlib.contextmanager
def simulated() -> Iterator[str]:
    """The address of simulated providers."""
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "evalpipe", "sim", "--port", str(port)],
        env=_environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert "listening" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def script_of(page: Path, name: str, *, port: int) -> str:
    """The blocks of one name on a page as one shell script."""
    parts = ["set -euo pipefail"]
    for block in blocks_of(page):
        if block.mark == "file":
            parts.append(f"cat > {block.about} <<'END_OF_FILE'\n{block.text}END_OF_FILE")
        elif block.about != name or block.mark not in {"test", "background"}:
            continue
        elif block.mark == "background":
            parts.append(
                f"{block.text.strip()} & BESIDE=$!; trap 'kill $BESIDE; wait $BESIDE || true' EXIT\n"
                f"for i in $(seq 300); do curl -s -o /dev/null http://127.0.0.1:{port}/_evalpipe/ready && break; sleep 0.1; done"
            )
        elif block.language == "python":
            parts.append(f"python - <<'END_OF_PYTHON'\n{block.text}END_OF_PYTHON\nsleep 1")
        else:
            parts.append(block.text)
    return "\n".join(parts).replace("=…", f"={KEY}").replace("8400", str(port)) + "\n"


def run_script(script: str, folder: Path, tools: Path, **more: str) -> str:
    """Its output, after checking that every command ended well."""
    environment = _environment(PATH=f"{tools}{os.pathsep}{os.environ['PATH']}", **more)
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=550)
    finally:  # what it started beside itself ends with it, also after a timeout
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, f"{script}\n{out}\n{err}"
    assert "Traceback" not in err
    return out + err


def test_two_files_of_answers_become_a_report(tmp_path: Path, tools: Path) -> None:
    with simulated() as url:
        script = script_of(ROOT / "docs/quick-start/files.md", "files", port=_free_port())
        out = run_script(script, tmp_path, tools, ANTHROPIC_BASE_URL=url)
    assert (tmp_path / "comparison" / "reports" / "comparison.html").exists()
    assert "Collect more data" in out


def test_live_traffic_becomes_a_report(tmp_path: Path, tools: Path) -> None:
    port = _free_port()
    with simulated() as url:
        editor = tools / "editor"
        editor.write_text(
            f"#!/bin/sh\nsed -i -e 's|https://api.openai.com|{url}|; s|https://api.anthropic.com|{url}|' "
            f"-e 's|^# port = 8400|port = {port}|; s|^# base_url = |base_url = |' \"$1\"\n"
        )
        editor.chmod(0o755)
        script = script_of(ROOT / "docs/quick-start/live.md", "live", port=port)
        out = run_script(script, tmp_path, tools, EDITOR=str(editor))
    assert (tmp_path / "my-experiment" / "reports" / "my-experiment.html").exists()
    assert "Collect more data" in out


@pytest.fixture(scope="module")
def with_data(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Path:
    """A workspace with the sample's traffic in it."""
    folder = tmp_path_factory.mktemp("documents")
    run_script(
        f"set -e\nevalpipe init . --name demo\nevalpipe load {ROOT}/data/sample/log.jsonl.gz --format spool",
        folder, tools,
    )  # fmt: skip
    return folder


ON_DATA = sorted(
    {(block.page, block.about) for block in BLOCKS if block.about in {"demo-data", "workspace", "notebook"}}
)


@pytest.mark.parametrize(("page", "name"), ON_DATA, ids=lambda one: str(one).removeprefix(f"{ROOT}/"))
def test_the_commands_of_a_page_run(page: Path, name: str, with_data: Path, tools: Path) -> None:
    run_script(script_of(page, name, port=_free_port()).replace("set -euo pipefail", "set -eu"), with_data, tools)
