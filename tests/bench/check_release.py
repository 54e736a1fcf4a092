"""The release procedure in a local index: build, publish, install from it into an empty environment, run the demo.

The index is a folder laid out as PEP 503, served on loopback; what it does not hold is redirected to the ordinary index, so that
every package has one source. Prints the seconds of each step, the installed size and the ten largest packages.

    make check-release            # dist/ holds what was tried
"""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
ORDINARY = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")


def timed(what: str, command: Sequence[str | Path], cwd: Path) -> str:
    """Run a step; its seconds are printed, its failure ends the check with all it has printed."""
    began = time.monotonic()
    # A wheel that is pure Python for want of something is no release.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "EVALPIPE_COMPILE": "1"
    }
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)
    if done.returncode != 0:
        sys.exit(f"{what}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


class Index(http.server.SimpleHTTPRequestHandler):
    """A simple index of this project's files alone."""

    def do_GET(self) -> None:
        if not Path(self.translate_path(self.path)).exists():
            self.send_response(302)
            self.send_header("Location", f"{ORDINARY}/{self.path.removeprefix('/simple/')}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def index(folder: Path) -> Iterator[str]:
    """The address of an index that holds the files of `dist/`."""
    project = folder / "simple/evalpipe"
    project.mkdir(parents=True)
    for path in DIST.iterdir():
        shutil.copy(path, project)
    links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in sorted(project.iterdir()))
    (project / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Index(*given, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()


def size_mb(path: Path) -> float:
    """Megabytes of a file or of all files below a folder."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files) / 1e6


def main() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed("virtual environment of the builder", [sys.executable, "-m", "venv", folder / "builder"], folder)
        timed("its `build`", [folder / "builder/bin/pip", "install", "-q", "build"], folder)
        timed("sdist, and the wheel from it", [folder / "builder/bin/python", "-m", "build", "-o", DIST, ROOT], folder)
        for path in sorted(DIST.iterdir()):
            print(f"          {path.name}: {size_mb(path):.1f} MB")
        timed("empty virtual environment", [sys.executable, "-m", "venv", folder / "user"], folder)
        binaries, empty = folder / "user/bin", folder / "empty"
        empty.mkdir()
        with index(folder / "index") as address:
            wanted = f"evalpipe=={version}"
            timed("pip install", [binaries / "pip", "install", "--no-cache-dir", "-i", address, wanted], folder)
        timed("evalpipe --version", [binaries / "evalpipe", "--version"], empty)
        timed("evalpipe --help", [binaries / "evalpipe", "--help"], empty)
        print(timed("evalpipe demo", [binaries / "evalpipe", "demo"], empty)[-400:])
        if not list(empty.glob("*/reports/*.html")):
            sys.exit("the demo left no report")
        (packages,) = (folder / "user/lib").glob("python3*/site-packages")
        sizes = sorted(((size_mb(path), path.name) for path in packages.iterdir()), reverse=True)
        print(
            f"installed: {sum(size for size, _ in sizes):.0f} MB in {len(list(packages.glob('*.dist-info')))} packages"
        )
        for size, name in sizes[:10]:
            print(f"  {size:6.1f} MB  {name}")


if __name__ == "__main__":
    main()
