"""A program `evalpipe` for tests that start many processes of it: each is forked from one that has imported the packages already.

A start of `python -m evalpipe` is a second of imports, most of what a short command costs. Here a server imports them once, and
the program asks it for a process: a real one, with the caller's arguments, environment, folder, limits and standard streams.
The program hands on signals and ends as that process ends; where the program is killed, so is the process.

What a test checks about starting, memory or `kill -9` needs `python -m evalpipe` itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

STAGES = "canary compare doctor judge judge_review label plan replay retention run status"
PRELOADED = (*(f"evalpipe.workspace.{name}" for name in STAGES.split()), "anthropic", "openai")
LIMITS = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@functools.cache
def evalpipe_program() -> Path:
    """The path of a program that does what `evalpipe` does, until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="evalpipe-"))
    address, program = folder / "socket", folder / "evalpipe"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" ask "{address}" "$@"\n')
    program.chmod(0o755)
    command = [sys.executable, __file__, "serve", str(address)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert server.stdin is not None and server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    server.stdout.close()

    def end() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return program


def ask(address: str, arguments: list[str]) -> None:
    """Have a process run these arguments, and end as it does."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    wanted = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    wanted["limits"] = {which: resource.getrlimit(which) for which in LIMITS}
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps(wanted).encode() + b"\n")
    lines = server.makefile()
    pid = int(lines.readline())
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(lines.readline())
    if status < 0:  # the process was ended by a signal: so is this one
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(address: str) -> None:
    """Fork a process for each request, until stdin ends. Returns in those processes only, ready to run their command."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or a collection in a process would copy the pages it shares
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    os.write(1, b"ready\n")
    while 0 not in select.select([0, listener], [], [])[0]:
        caller, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _process_for(caller)
        caller.close()
        _wait_for_any(os.WNOHANG)
    _wait_for_any(0)
    os._exit(0)


def _wait_for_any(how: int) -> None:
    """Let go of the forked processes that have ended (WNOHANG), or wait until all have (0)."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, how)[0]:
            pass


def _process_for(caller: socket.socket) -> None:
    """Returns in the new process; the one that forked it stays, passes on how it ends, and ends it where the caller is gone."""
    _, streams, _, _ = socket.recv_fds(caller, 1, 3)
    wanted = json.loads(caller.makefile().readline())
    alive, held = os.pipe()  # the process holds its end for as long as it runs
    pid = os.fork()
    if pid == 0:
        caller.close()
        os.close(alive)
        return _become(wanted, streams)
    for descriptor in (*streams, held):
        os.close(descriptor)
    caller.sendall(b"%d\n" % pid)
    if caller in select.select([caller, alive], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(ConnectionError):
        caller.sendall(b"%d\n" % status)
    os._exit(0)


def _become(wanted: dict[str, Any], streams: list[int]) -> None:
    """Take on what a process that is started finds: its streams, environment, folder and arguments."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(open(number, mode, closefd=False), "utf-8", errors, line_buffering=number == 2)  # noqa: SIM115
        for number, mode, errors in ((0, "rb", "strict"), (1, "wb", "strict"), (2, "wb", "backslashreplace"))
    )
    for which, limits in wanted["limits"].items():
        resource.setrlimit(int(which), tuple(limits))
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    package = importlib.import_module("evalpipe").__file__
    sys.argv = [str(Path(str(package)).with_name("__main__.py")), *wanted["arguments"]]


def _run() -> None:
    """Run the command and end; without the interpreter's own end, which would take all apart that the server imported."""
    code: object = 0
    try:
        importlib.import_module("evalpipe.cli").main()
    except SystemExit as error:
        code = error.code
    except BaseException:  # noqa: BLE001 - as the interpreter would, whatever it is
        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(sys.argv[2], sys.argv[3:])
    serve(sys.argv[2])
    _run()
