"""`evalpipe …` within the test's own process: what a command prints and its exit code, without a second of imports for each."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from evalpipe.cli.app import main


def run_here(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of the command line: in a working directory, with an environment without API keys but for `env`.

    An error that would be a traceback there is raised here.
    """
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")} | (env or {})
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: object = 0
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "argv", ["evalpipe", *arguments]),
        mock.patch.object(sys, "stdin", io.StringIO()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main(list(arguments))
        except SystemExit as error:
            code = error.code
    printed = (out.buffer.getvalue().decode(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, int(str(code or 0)), *printed)
