"""`evalpipe demo`: the whole line on the shipped sample, in real processes over real HTTP.

Simulated providers answer with what two small models really said, at the pace they said it; users send the sample's
requests through the OpenAI SDK to the collector; the log is loaded, judged by a simulated judge with stated rules, and
reported. The workspace stays and can be used on.
"""

from __future__ import annotations

import os
import socket
import string
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tqdm import tqdm

from evalpipe.config import CONFIG_FILE
from evalpipe.errors import ConfigError
from evalpipe.pipeline.children import Child
from evalpipe.pipeline.demo_client import send_requests
from evalpipe.pipeline.init import FOLDERS, GITIGNORE
from evalpipe.pipeline.report import WrittenReport, write_report
from evalpipe.pipeline.sample import LOG, sample_folder, sample_requests, write_corpus
from evalpipe.pipeline.workspace import open_workspace

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
        _say("starting the providers" + (": two local models (the first start takes a while)" if local_models else ""))
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
        collector.stop()  # finishes the copies under way
        report = _evaluate(folder)
    return Demo(folder=folder, report=report, answered=answered, failed=failed)


def _evaluate(folder: Path) -> WrittenReport:
    from evalpipe.pipeline.judge import judge
    from evalpipe.pipeline.judge_setup import JudgeOptions
    from evalpipe.pipeline.load import load

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
    template = resources.files("evalpipe.pipeline").joinpath("demo.toml.template").read_text("utf-8")
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


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
