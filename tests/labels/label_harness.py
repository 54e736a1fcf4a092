"""Workspaces with pairs to label, and the page over real HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from warm_start import evalpipe_program

from evalpipe.serve.labelling.app import serve_labelling
from evalpipe.store.query import open_store
from evalpipe.workspace.label import LabelOptions, open_labelling
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace

CONTROL, TREATMENT = "alpha", "omega"
"""words by which a test recognises the arm of an answer"""


def make_workspace(
    root: Path,
    n: int = 60,
    *,
    verdicts: Sequence[tuple[str | None, str | None]] = (),
    texts: Sequence[tuple[str, str, str]] = (),
    users: int | None = None,
    settings: str = "",
) -> Workspace:
    """n pairs; `verdicts`: of a recorded judge in both orders (a | b | tie), by pair; `texts`: (prompt, control, treatment);
    `users`: who ask in turn, by default one for each pair; `settings`: more of evalpipe.toml."""
    rows = []
    for index in range(n):
        prompt, control, treatment = (
            texts[index]
            if index < len(texts)
            else (f"question {index}?", f"{CONTROL} answer {index}", f"{TREATMENT} answer {index}")
        )
        row: dict[str, Any] = {
            "pair_id": f"r{index}",
            "prompt": prompt,
            "response_a": control,
            "response_b": treatment,
            "unit_id": f"u{index % (users or n)}",
            "model_a": "secret-model-1",
            "model_b": "secret-model-2",
        }
        if index < len(verdicts):
            row["judgements"] = [
                {"judge": "recorded", "order": order, "verdict": verdict}
                for order, verdict in zip(("ab", "ba"), verdicts[index], strict=True)
                if verdict is not None
            ]
        rows.append(row)
    root.mkdir(exist_ok=True)
    (root / "evalpipe.toml").write_text(f'[experiment]\nname = "t"\n{settings}')
    (root / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = open_workspace(root / "evalpipe.toml")
    load(found, [root / "pairs.jsonl"], format_name="pairs", show_progress=False)
    return found


def rows(found: Workspace, sql: str, experiment: str = "t") -> list[tuple[Any, ...]]:
    with open_store(found.data, experiment) as store:
        result: list[tuple[Any, ...]] = store.connection.execute(sql).fetchall()
        return result


@dataclass
class Page:
    """`evalpipe label` in a process of its own."""

    process: subprocess.Popen[str]
    address: str
    output: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.address.split(":")[2].split("/")[0])

    @property
    def start_path(self) -> str:
        return "/" + self.address.split("/", 3)[3]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def label_page(root: Path, *options: str, **environment: str) -> Iterator[Page]:
    command = [evalpipe_program(), "label", "--port", "0", *options]
    process = subprocess.Popen(
        command, cwd=root, stderr=subprocess.PIPE, text=True, env={**os.environ, "EVALPIPE_TOKEN": "", **environment}
    )
    lines: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "label here: " in line:
                break
        else:
            raise AssertionError("".join(lines))
        page = Page(process=process, address=line.split("label here: ")[1].split()[0], output=lines)
        reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
        reader.start()
        yield page
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)
        if process.stderr is not None:
            process.stderr.close()


@dataclass
class ForkedPage:
    """The page in a process that is forked from one which has loaded everything: it starts in a moment."""

    process: BaseProcess
    address: str

    @property
    def port(self) -> int:
        return int(self.address.split(":")[2].split("/")[0])

    @property
    def start_path(self) -> str:
        return "/" + self.address.split("/", 3)[3]

    def kill(self) -> None:
        self.process.kill()

    def stop(self) -> int | None:
        """As Ctrl-C does it; the exit code."""
        self.process.terminate()
        return self.exit_code()

    def exit_code(self) -> int | None:
        self.process.join(60)
        return self.process.exitcode


@contextmanager
def forked_page(root: Path, **options: Any) -> Iterator[ForkedPage]:
    context = get_context("forkserver")
    context.set_forkserver_preload(["label_harness", "evalpipe.serve.labelling.app", "evalpipe.workspace.label"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(root, options, theirs), daemon=True)
    process.start()
    try:
        assert ours.poll(60)
        yield ForkedPage(process=process, address=ours.recv())
    finally:
        process.kill()
        process.join(30)


def _serve(root: Path, options: dict[str, Any], pipe: Any) -> None:
    with open_labelling(open_workspace(root / "evalpipe.toml"), LabelOptions(**options)) as labelling:
        serve_labelling(labelling, port=0, announce=pipe.send)


class PageEndedError(Exception):
    """The page gave no whole answer."""


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    text: str


class Person:
    """A browser without JavaScript: one person with a session."""

    def __init__(self, page: Page | ForkedPage, name: str) -> None:
        self.port, self.name = page.port, name
        self.connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.cookie = ""
        started = self.request("GET", page.start_path)
        self.cookie = started.headers.get("set-cookie", "").split(";")[0]

    def request(
        self, method: str, path: str, form: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> Answered:
        body = None if form is None else urlencode(form)
        sent = {"Cookie": self.cookie, "Origin": f"http://127.0.0.1:{self.port}"} if self.cookie else {}
        if body is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        self.connection.close()  # one of long ago may be closed by the server in this moment
        self.connection.request(method, path, body=body, headers={**sent, **(headers or {})})
        response = self.connection.getresponse()
        found = {key.lower(): value for key, value in response.getheaders()}
        return Answered(response.status, found, response.read().decode())

    def page(self) -> str:
        found = self.request("GET", f"/?{urlencode({'as': self.name})}")
        if found.status != 200:
            raise PageEndedError(f"{found.status} {found.text}")
        return found.text

    def token(self, page: str | None = None) -> str | None:
        found = re.search(r'name="pair" value="([0-9a-f]+)"', page if page is not None else self.page())
        return found[1] if found else None

    def send(self, choice: str, token: str | None = None, **more: str) -> Answered:
        return self.request("POST", "/answer", {"as": self.name, "pair": token or "", "choice": choice, **more})

    def label(self, choice: str = "1") -> str | None:
        """Answer the pair that is shown; its token, None where nothing is left."""
        token = self.token()
        if token is not None:
            assert self.send(choice, token).status == 303
        return token
