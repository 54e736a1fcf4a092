"""What a user meets first: `evalpipe --help`, and `evalpipe` alone in a folder where nothing is set up.

Both are plain text that needs neither rich nor Markdown, which take longer to import than all the rest of the command line.
"""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

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
