"""Build hook: compiles the collector's data path and the readers of responses with mypyc while a wheel is built.

The compiled modules are the same Python files, at half the processor's time a request and half that of `load`: those that hold
the line `# mypyc: compiled into wheels`. Where no C compiler is found the wheel is pure Python, and says so. An editable install
(development, `make demo`) stays interpreted: what is edited is what runs. `EVALPIPE_COMPILE=0` builds the pure wheel, `=1`
makes a failure an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_MARKER = re.compile(r"^# mypyc: compiled into wheels", re.MULTILINE)
_MODE = os.environ.get("EVALPIPE_COMPILE", "")
# What the compiled modules import and mypy reads types of, beside the compiler itself.
_NEEDS = ["mypy>=1.18", "setuptools>=75", "msgspec>=0.19", "prometheus-client>=0.21"]
# Modules that are imported only for their types are not checked: where a wheel is built, NumPy and others are not installed.
_SETUP = """
from setuptools import setup
from mypyc.build import mypycify

modules = {modules!r}
options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
setup(name="evalpipe", packages=[], ext_modules=mypycify(options + modules, opt_level="2", debug_level="0",
      group_name="evalpipe._compiled"))
"""


def compiled_modules(root: Path) -> list[str]:
    """The marked modules, as paths from the root."""
    found = sorted(path for path in (root / "evalpipe").rglob("*.py") if _MARKER.search(path.read_text("utf-8")))
    return [str(path.relative_to(root)) for path in found]


class CompileHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return [] if _MODE == "0" else _NEEDS

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or _MODE == "0":
            return
        self._folder = Path(tempfile.mkdtemp(prefix="evalpipe-compile-"))
        problem = self._compile(self._folder)
        if problem is not None:
            if _MODE == "1":
                raise RuntimeError(f"evalpipe's collector was not compiled: {problem}")
            self.app.display_warning(f"evalpipe: the collector stays interpreted, and slower: {problem}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for library in self._folder.rglob("*.so"):
            build_data["force_include"][str(library)] = str(library.relative_to(self._folder))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable" and _MODE != "0":
            shutil.rmtree(self._folder, ignore_errors=True)

    def _compile(self, folder: Path) -> str | None:
        """None, or why it failed. In a copy, so that no library is left beside the sources."""
        shutil.copytree(Path(self.root) / "evalpipe", folder / "evalpipe", ignore=shutil.ignore_patterns("*.so"))
        (folder / "setup.py").write_text(_SETUP.format(modules=compiled_modules(Path(self.root))))
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
        shutil.rmtree(folder / "build", ignore_errors=True)
        if done.returncode == 0:
            return None
        lines = (done.stdout + done.stderr).strip().splitlines()
        return lines[-1][:120] if lines else f"exit code {done.returncode}"
