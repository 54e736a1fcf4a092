"""`evalpipe demo`: every stage on the shipped sample, in real processes over real HTTP.

Simulated providers answer with recorded responses of two small models, at their recorded pace; users send the sample's
requests through the OpenAI SDK to the collector; the log is loaded, judged by a simulated judge with stated rules, and
reported. The workspace stays and can be used on.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from evalpipe.config import CONFIG_FILE
from evalpipe.errors import ConfigError, DataError, EvalpipeError
from evalpipe.models import ANSWERED
from evalpipe.providers.registry import read_answer
from evalpipe.spool.format import RequestRecord, ResponseRecord, read_record
from evalpipe.workspace.paths import FOLDERS, GITIGNORE, open_workspace, shipped
from evalpipe.workspace.report import WrittenReport, write_report

DEFAULT_FOLDER = Path("evalpipe-demo")
ARRIVALS_S = 18.0
MAX_LATENCY_MS = 5000.0
PORTS = {"collector": 8400, "sim": 8401, "control": 8411, "treatment": 8412}
"""where they listen unless the port is taken"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """What the demo left behind."""

    folder: Path
    report: WrittenReport
    answered: int
    failed: int


def run_demo(folder: Path = DEFAULT_FOLDER, *, local_models: bool = False, arrivals_s: float = ARRIVALS_S) -> Demo:
    """Run it in `folder`. `local_models`: the two real models instead of their recorded answers. `arrivals_s`: the half
    hour of the sample's arrivals takes this long."""
    requests = sample_requests()
    _prepare(folder)
    corpus = folder / "corpus.jsonl"
    write_corpus(sample_folder() / LOG, corpus)
    with ExitStack() as stack:
        _print(
            "starting the providers" + (": two local models (the first start takes a while)" if local_models else "")
        )
        sim = stack.enter_context(_sim(folder, corpus))
        sim_url = sim.wait_listening()
        urls = {"control": f"{sim_url}/v1", "treatment": f"{sim_url}/v1"}
        if local_models:
            models = {"control": "smollm2-135m-instruct", "treatment": "gemma-3-270m"}
            children = {arm: stack.enter_context(_local_model(folder, arm, model)) for arm, model in models.items()}
            urls = {arm: f"{child.wait_listening()}/v1" for arm, child in children.items()}
        _write_config(folder, sim_url=sim_url, urls=urls)

        collector = stack.enter_context(
            Child(
                "evalpipe",
                ["collect", "-c", str(folder / CONFIG_FILE)],
                log=folder / "logs/collect.log",
                name="the collector",
            )
        )
        base_url = f"{collector.wait_listening()}/v1"
        with _progress(len(requests), "collect") as advance:
            answered, failed = send_requests(
                requests, base_url=base_url, duration_s=arrivals_s, concurrency=32, progress=advance
            )
        collector.stop()  # finishes the shadow requests in flight
        report = _evaluate(folder)
    return Demo(folder=folder, report=report, answered=answered, failed=failed)


def _evaluate(folder: Path) -> WrittenReport:
    from evalpipe.workspace.judge import judge
    from evalpipe.workspace.judge_setup import JudgeOptions
    from evalpipe.workspace.load import load

    os.environ.setdefault("EVALPIPE_DEMO_KEY", "demo")  # the simulated judge takes any key
    workspace = open_workspace(folder / CONFIG_FILE)
    load(workspace)
    judge(workspace, JudgeOptions())
    return write_report(workspace)


def _prepare(folder: Path) -> None:
    if (folder / CONFIG_FILE).exists() and not (folder / "corpus.jsonl").exists():
        raise ConfigError(f"{folder} holds another workspace: name a new folder with --folder")
    try:
        for sub in (*FOLDERS, "logs"):
            (folder / sub).mkdir(mode=0o700 if sub == "data" else 0o777, parents=True, exist_ok=True)
        (folder / ".gitignore").write_text(GITIGNORE, "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or folder}: {error.strerror}") from error


def _write_config(folder: Path, *, sim_url: str, urls: dict[str, str]) -> None:
    template = resources.files("evalpipe.workspace").joinpath("demo.toml.template").read_text("utf-8")
    text = string.Template(template).substitute(
        sim_port=sim_url.rsplit(":", 1)[1],
        judge_url=sim_url,
        control_url=urls["control"],
        treatment_url=urls["treatment"],
        collector_port=_port("collector"),
    )
    (folder / CONFIG_FILE).write_text(text, "utf-8")


def _sim(folder: Path, corpus: Path) -> Child:
    arguments = ["sim", "--port", str(_port("sim")), "--corpus", str(corpus), "--judge", "checks"]
    arguments += ["--max-latency-ms", f"{MAX_LATENCY_MS:.0f}"]
    return Child("evalpipe", arguments, log=folder / "logs/sim.log", name="the simulated providers")


def _local_model(folder: Path, arm: str, model: str) -> Child:
    return Child(
        "evalpipe.sim.local",
        [model, "--port", str(_port(arm))],
        log=folder / f"logs/{arm}.log",
        name=f"the local model {model}",
    )


def _port(name: str) -> int:
    """The usual port where it is free, else any free one."""
    for port in (PORTS[name], 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise ConfigError("no free port on 127.0.0.1")


@contextmanager
def _progress(total: int, name: str) -> Iterator[Callable[[], None]]:
    with tqdm(total=total, desc=name, unit="req", file=sys.stderr) as bar:

        def advance() -> None:
            bar.update(1)

        yield advance


def _print(text: str) -> None:
    sys.stderr.write(f"{text}\n")


# The demo's users: they send the sample's requests through the official OpenAI SDK, at the recorded times compressed.


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """One request of the sample: who sent it, when (seconds after the first), and the body of the chat completion."""

    at_s: float
    user: str
    category: str
    body: dict[str, Any]


def load_sample_requests(path: Path) -> list[SampleRequest]:
    with path.open(encoding="utf-8") as lines:
        return [SampleRequest(**json.loads(line)) for line in lines]


def send_requests(
    requests: list[SampleRequest],
    *,
    base_url: str,
    duration_s: float | None,
    concurrency: int,
    progress: Callable[[], None],
) -> tuple[int, int]:
    """Send every request to the collector at `base_url` (".../v1"); (answered, failed).

    `duration_s`: the recorded arrival times are scaled to this; None = as fast as `concurrency` allows.
    """
    return asyncio.run(_send(requests, base_url, duration_s, concurrency, progress))


async def _send(
    requests: list[SampleRequest],
    base_url: str,
    duration_s: float | None,
    concurrency: int,
    progress: Callable[[], None],
) -> tuple[int, int]:
    import openai

    slots = asyncio.Semaphore(concurrency)
    scale = duration_s / max(request.at_s for request in requests) if duration_s is not None and requests else 0.0
    answered = failed = 0
    loop = asyncio.get_running_loop()
    start = loop.time()

    async with openai.AsyncOpenAI(base_url=base_url, api_key="demo", max_retries=0, timeout=120) as client:

        async def one(request: SampleRequest) -> None:
            nonlocal answered, failed
            await asyncio.sleep(max(0.0, start + request.at_s * scale - loop.time()))
            async with slots:
                try:
                    answer = await client.chat.completions.create(
                        **request.body, extra_headers={"x-user-id": request.user}
                    )
                    if request.body.get("stream"):
                        async for _ in answer:
                            pass
                    answered += 1
                except openai.APIError:  # what a user of the app would see as an error; the log holds the details
                    failed += 1
                progress()

        await asyncio.gather(*(one(request) for request in requests))
    return answered, failed


# The shipped sample: what two small real models answered through the collector, and what is made of it.


REQUESTS = "requests.jsonl"
LOG = "log.jsonl.gz"


def sample_folder() -> Path:
    folder = shipped("data/sample")
    if not (folder / LOG).is_file():
        raise DataError(f"no sample log at {folder / LOG}: the installation is incomplete")
    return folder


def sample_requests() -> list[SampleRequest]:
    return load_sample_requests(sample_folder() / REQUESTS)


def write_corpus(log: Path, path: Path) -> int:
    """Write the recorded answers of a collector's log as a corpus of the simulated providers; how many.

    Each line is a conversation, the model that answered, its text, tokens, latency and time to first token. Shadow requests and
    served answers alike; answers that failed are left out: the simulator makes its own faults.
    """
    conversations: dict[str, list[object]] = {}
    answers: list[ResponseRecord] = []
    for line in gzip.decompress(log.read_bytes()).splitlines():
        record = read_record(line)
        if isinstance(record, RequestRecord):
            conversations[record.request_id] = json.loads(record.body.data)["messages"]
        elif isinstance(record, ResponseRecord):
            answers.append(record)
    n_written = 0
    with path.open("w", encoding="utf-8") as out:
        for record in answers:
            answer = read_answer(record.endpoint, record.status, record.headers, record.body.data)
            if answer.outcome not in ANSWERED:
                continue
            entry = {
                "model": answer.model,
                "messages": conversations[record.request_id],
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "input_tokens": answer.usage.input_tokens,
                "output_tokens": answer.usage.output_tokens,
                "latency_ms": record.latency_ms,
                "ttft_ms": _first_token_ms(record, answer.content_offset),
            }
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
            n_written += 1
    return n_written


def _first_token_ms(record: ResponseRecord, content_offset: int | None) -> float | None:
    """When the body first reached `content_offset` bytes; None where the answer was not streamed."""
    if content_offset is None:
        return None
    return next((ms for n_bytes, ms in record.marks if n_bytes >= content_offset), None)


# Child processes of one command: started, known to listen, stopped gently, never left behind.


_LISTENING = re.compile(r"listening on (http://\S+)")


class Child:
    """`python -m MODULE ARGUMENTS…` in a process of its own, its output in `log`. A context manager that stops it."""

    def __init__(self, module: str, arguments: list[str], *, log: Path, name: str) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_listening(self, *, timeout_s: float = 60.0) -> str:
        """The address the child reports to listen on. Raises EvalpipeError with its last line where it ends or stays silent."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = _LISTENING.search(self._output())
            if found:
                return found.group(1)
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = self._output().strip().splitlines()[-1:] or ["no output"]
                raise EvalpipeError(f"{self.name} did not start: {last[0]} (log: {self.log})")
            time.sleep(0.05)

    def stop(self, *, timeout_s: float = 60.0) -> None:
        """SIGTERM and wait; SIGKILL after `timeout_s`. Raises EvalpipeError where the child failed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise EvalpipeError(f"{self.name} did not stop within {timeout_s:.0f} s (log: {self.log})") from None
        if code not in (0, -signal.SIGTERM):
            raise EvalpipeError(f"{self.name} ended with exit code {code} (log: {self.log})")

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill() if kind else self._process.terminate()
            self._process.wait()

    def _output(self) -> str:
        return self.log.read_text("utf-8", "replace")
