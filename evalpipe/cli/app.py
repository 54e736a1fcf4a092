"""The Typer application: the list of commands, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from evalpipe.errors import EvalpipeError
from evalpipe.text import printable
from evalpipe.version import __version__

COMMANDS = (
    # name, module in this package, panel
    ("demo", "demo", "Start"),
    ("init", "init", "Start"),
    ("doctor", "doctor", "Start"),
    ("compare", "compare", "Start"),
    ("collect", "collect", "Pipeline"),
    ("load", "load", "Pipeline"),
    ("unload", "unload", "Pipeline"),
    ("replay", "replay", "Pipeline"),
    ("judge", "judge", "Pipeline"),
    ("label", "label", "Pipeline"),
    ("report", "report", "Pipeline"),
    ("run", "run", "Pipeline"),
    ("gate", "gate", "Decide"),
    ("status", "status", "Decide"),
    ("serve", "serve", "Decide"),
    ("plan", "plan", "Decide"),
    ("exclude", "exclude", "Decide"),
    ("sql", "sql", "Decide"),
    ("compact", "compact", "Keep"),
    ("prune", "prune", "Keep"),
    ("forget", "forget", "Keep"),
    ("canary", "canary", "Roll out"),
    ("istio", "istio", "Roll out"),
    ("grafana", "grafana", "Roll out"),
    ("sim", "sim", "Try out"),
)
"""Every command: `evalpipe/cli/MODULE.py` holds a function of the command's name (`-` → `_`), or a Typer `app`; `COMMAND` is the
class of a command that has one of its own."""

COMPLETING = "_EVALPIPE_COMPLETE"
"""set by a shell that asks for completions"""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evalpipe {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Ship it, keep what we have, or collect more? Two LLM arms compared on production traffic, at no risk to users.

    Start with `evalpipe demo`: it needs no key, no server, no configuration.
    """


def build_app(only: str | None = None) -> typer.Typer:
    """The program; `only`: with this one of its commands, as the others take longer to set up than many a command to run."""
    app = typer.Typer(
        name="evalpipe",
        cls=Root,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name, module_name, panel in COMMANDS:
        if only not in {None, name}:
            continue
        module: Any = importlib.import_module(f"evalpipe.cli.{module_name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, rich_help_panel=panel)
        else:
            app.command(name, cls=getattr(module, "COMMAND", None), rich_help_panel=panel)(getattr(module, name))
    return app


def _command_of(words: list[str]) -> str | None:
    """The command that a command line begins with; None where it begins with no name of one, or a shell asks for completions."""
    first = next(iter(words), None)
    return first if COMPLETING not in os.environ and any(name == first for name, _, _ in COMMANDS) else None


def _interrupted() -> NoReturn:
    typer.echo("evalpipe: interrupted; what was stored is kept, run the same command again", err=True)
    sys.exit(130)


def _with_bare_data(arguments: list[str]) -> list[str]:
    """`doctor --data` without a folder checks the data; with one it is the option that every command has."""
    if arguments[:1] != ["doctor"]:
        return arguments
    following = [*arguments[1:], "-"]
    return [
        "--check-data" if word == "--data" and following[place].startswith("-") else word
        for place, word in enumerate(arguments)
    ]


_WITH_RAY = {"doctor": False, "gate": False, "judge": True, "load": True, "replay": True, "report": False}
"""command → whether it takes words of its own, which may stand behind a `--ray` without an address"""
_ANY_WORD = re.compile(r"[^-].*", re.DOTALL)
_RAY_ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.-]+:[0-9]{1,5}|\[[0-9a-f:.]+\]:[0-9]{1,5}")


def with_bare_ray(arguments: list[str]) -> list[str]:
    """`--ray` may stand without an address; a word after it that is none is the command's own, as a file's name."""
    if not arguments or arguments[0] not in _WITH_RAY:
        return arguments
    address = _RAY_ADDRESS if _WITH_RAY[arguments[0]] else _ANY_WORD
    following = [*arguments[1:], ""]
    return [
        "--ray=" if word == "--ray" and not address.fullmatch(following[place]) else word
        for place, word in enumerate(arguments)
    ]


def _missing_package(error: Exception) -> str | None:
    """The line for a package that is not installed, as on a machine that only collects; None where none is missing."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name in {"", "evalpipe"}:
        return None
    how = "install evalpipe with all its packages (README, Install)"
    return f"this command needs the package {name}, which is not installed here: {how}"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words and is_bare(Path.cwd()) and COMPLETING not in os.environ:
        typer.echo(DOORS, nl=False)
        sys.exit(0)
    try:
        app = build_app(only=_command_of(words))
        result = app(with_bare_ray(_with_bare_data(words)), standalone_mode=False, prog_name="evalpipe")
    except EvalpipeError as error:
        from evalpipe.collector.logs import report_error

        if not report_error(str(error)):
            typer.echo(f"evalpipe: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _interrupted()
    except BrokenPipeError:  # `evalpipe sql … | head`: the reader has closed stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error) == "Query interrupted":  # Ctrl-C amid a query of DuckDB's
            _interrupted()
        from evalpipe.files import NOT_ALLOWED, resource_fault

        fault = resource_fault(error)
        if fault is not None:
            typer.echo(f"evalpipe: {fault}; run the same command again where there is more room", err=True)
            sys.exit(1)
        if isinstance(error, OSError) and error.errno in NOT_ALLOWED and error.filename is not None:
            what = f"cannot write or read {error.filename}: {error.strerror}"
            typer.echo(f"evalpipe: {printable(what)}; see whose folder it is, and whether it is read-only", err=True)
            sys.exit(1)
        missing = _missing_package(error)
        if missing is not None:
            typer.echo(f"evalpipe: {missing}", err=True)
            sys.exit(1)
        # click's own errors (usage, abort) print themselves; its classes moved between typer releases.
        show = getattr(error, "show", None)
        if show is None:
            if type(error).__name__ == "Abort":
                _interrupted()
            raise
        from evalpipe.cli.usage import usage_line

        line = usage_line(error, words)
        if line is None:
            show()
        else:
            typer.echo(f"evalpipe: {printable(line)}", err=True)
        sys.exit(getattr(error, "exit_code", 1))
    if result == 130:  # the exit code of typer for a KeyboardInterrupt, and of judge for its own
        _interrupted()
    sys.exit(result if isinstance(result, int) else 0)


# What a user meets first: `evalpipe --help`, and `evalpipe` alone in a folder where nothing is set up.
#
# Both are plain text that needs neither rich nor Markdown, which take longer to import than all the rest of the command
# line.


CONFIG_FILE = "evalpipe.toml"
"""as in the configuration's own module, which would import pydantic here"""
DOORS = """\
Ship it, keep what you have, or collect more? Nothing is set up in this folder yet. Three ways to start:

  See it once           evalpipe demo
                        collect, load, judge and report on recorded traffic: half a minute, no key, no server

  Two sets of answers   evalpipe compare old.jsonl new.jsonl
                        from any log or table to a report; names the judge and its cost before it asks

  Live traffic          evalpipe init, then edit evalpipe.toml, evalpipe doctor, evalpipe collect
                        point your SDK's base_url at it; users keep getting the present answers

All commands: evalpipe --help
"""
WIDEST = 100
"""characters of a line of help, where the terminal has more"""


def is_bare(folder: Path) -> bool:
    """Whether nothing of evalpipe is set up in a folder: neither a configuration nor data."""
    return not (folder / CONFIG_FILE).exists() and not (folder / "data" / "exchanges").exists()


class Root(TyperGroup):
    """The program itself: its help lists the commands in groups, one line or two each."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help of `evalpipe`."""
        width = min(shutil.get_terminal_size().columns, WIDEST)
        typer.echo("Usage: evalpipe [OPTIONS] COMMAND [ARGS]...\n")
        for paragraph in (self.help or "").split("\n\n"):
            typer.echo(textwrap.fill(" ".join(paragraph.split()).replace("`", ""), width) + "\n")
        shown: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            first = " ".join((command.help or "").split("\n\n")[0].split()).replace("`", "")
            shown.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, first))
        left = 2 + max(map(len, self.commands)) + 2
        for panel, entries in shown.items():
            typer.echo(f"{panel}:")
            for name, first in entries:
                lines = textwrap.wrap(first, max(width - left, 20))
                typer.echo(f"  {name}".ljust(left) + f"\n{' ' * left}".join(lines))
            typer.echo()
        options = [record for one in self.get_params(ctx) if (record := one.get_help_record(ctx)) is not None]
        typer.echo("Options:")
        widest = max(len(option) for option, _ in options)
        for option, text in options:
            typer.echo(f"  {option.strip().ljust(widest)}  {text}")
