"""`evalpipe label` and its sub-commands."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from evalpipe.cli import options

if TYPE_CHECKING:
    from evalpipe.labels.interchange import Format
    from evalpipe.workspace.label import LabelCounts
    from evalpipe.workspace.label_estimate import LabelsNeeded

TOKEN_ENV = "EVALPIPE_TOKEN"

commands = typer.Typer(add_completion=False, rich_markup_mode="markdown")


class LabelCommand(TyperCommand):
    """`evalpipe label`, whose first word may be one of its commands."""

    NAMES = ("export", "import")

    @property
    def commands(self) -> dict[str, Any]:
        """By name, for the reference of the command line."""
        found: dict[str, Any] = getattr(typer.main.get_command(commands), "commands")  # noqa: B009 - a group's
        return found

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if args[:1] and args[0] in self.NAMES:
            return typer.main.get_command(commands).make_context("label", args, parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)


COMMAND = LabelCommand

Format_ = Annotated[
    str | None,
    typer.Option("--format", help="csv, label-studio or argilla.  [default: by the file's name or content]"),
]


def label(
    pairs: Annotated[
        int | None,
        typer.Option("--pairs", "-n", min=1, help="Pairs in the draw.  [default: 100, or as drawn before]"),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option("--overlap", min=0.0, max=1.0, help="Share of the draw that everybody labels.  [default: 0.2]"),
    ] = None,
    seed: Annotated[str | None, typer.Option("--seed", help="Of the draw.  [default: the experiment's name]")] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", "-j", help="The judge on whose doubt the draw is based.  [default: [judge] name]"),
    ] = None,
    new_draw: Annotated[bool, typer.Option("--new-draw", help="Draw again, whatever was drawn before.")] = False,
    estimate: Annotated[
        float | None,
        typer.Option(
            "--estimate", metavar="POINTS", help="Print how many labels an interval of ± POINTS needs; serve nothing."
        ),
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Print the draw and the labels so far; serve nothing.")
    ] = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0: any free one.")] = 8420,
    token_env: Annotated[
        str, typer.Option("--token-env", help="Environment variable of the token that opens the page.")
    ] = TOKEN_ENV,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A name of this machine that the page is asked by.")
    ] = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Let people choose the better answer, pair by pair and blind, on a page of this machine.

    Open the address it prints. Keys: 1, 2, 0 (tie), s (skip), u (undo). Every label is on disk before the next pair is shown.
    Several people label at once, each under a name (`/?as=NAME`): no pair is asked twice, except the share that everybody
    labels (`--overlap`), by which their agreement is measured. Labels appear as `label:human` beside the judges.

    The draw is random and the same for the same seed. Pairs on which the judge contradicts itself or sees a tie are drawn up
    to twice as often as the others; the probability of each pair is stored with its labels.

    On loopback the printed address holds a token of this run; with one in `EVALPIPE_TOKEN` the page asks for it. Other
    addresses need it.

    Commands of its own, each with `--help`:

    - `evalpipe label export FILE`: the draw and its labels as CSV, for Label Studio or for Argilla
    - `evalpipe label import FILE`: labels that were given there

    ```
    evalpipe label --estimate 5
    evalpipe label --pairs 200
    evalpipe label --status
    ```
    """
    from evalpipe.text import printable
    from evalpipe.workspace.label import LabelOptions, label_status, open_labelling
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(config, data)
    chosen = LabelOptions(
        n_pairs=pairs, overlap=overlap, seed=seed, judge=judge, new_draw=new_draw, experiment=experiment
    )
    if estimate is not None:
        from evalpipe.workspace.label_estimate import estimate_labels

        needed = estimate_labels(workspace, estimate, chosen)
        if as_json:
            typer.echo(json.dumps(asdict(needed), indent=2))
        else:
            typer.echo("\n".join(_needed_lines(needed)))
        return
    if status:
        counts = label_status(workspace, chosen)
        if as_json:
            typer.echo(json.dumps(asdict(counts), ensure_ascii=False, indent=2))
            return
        for line in _count_lines(counts):
            typer.echo(printable(line))
        return
    with open_labelling(workspace, chosen) as labelling:
        for line in _count_lines(labelling.counts()):
            typer.echo(printable(line), err=True)
        from evalpipe.config import secret
        from evalpipe.serve.labelling.app import serve_labelling

        serve_labelling(
            labelling,
            host=host,
            port=port,
            token=secret(token_env),
            token_env=token_env,
            allow_hosts=allow_host or (),
            announce=lambda address: typer.echo(f"label here: {address}  (Ctrl-C ends it)", err=True),
        )
        counts = labelling.counts()
    typer.echo(printable(_given_line(counts)), err=True)


@commands.command("export")
def export_(
    path: Annotated[Path, typer.Argument(help="The file to write.")],
    format_name: Format_ = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
) -> None:
    """Write the draw and its labels as a file of another tool, as blind as the page.

    A name that ends in .csv is a CSV table; for JSON give `--format label-studio` or `--format argilla`. Label Studio's
    labelling interface that fits the tasks is printed. A file that exists is not overwritten.

    ```
    evalpipe label export pairs.csv
    ```
    """
    from evalpipe.errors import ConfigError
    from evalpipe.files import write_atomically
    from evalpipe.labels.interchange import LABEL_STUDIO_CONFIG
    from evalpipe.workspace.label import export_labels, view_labels
    from evalpipe.workspace.paths import open_workspace

    name = _format(format_name) or ("csv" if path.suffix.lower() == ".csv" else None)
    if name is None:
        raise ConfigError(f"{path}: which format? a name that ends in .csv, or --format label-studio, argilla or csv")
    if path.exists():
        raise ConfigError(f"{path} exists; give another name")
    with view_labels(open_workspace(config, data), experiment) as labelling:
        text, n_pairs, n_labels = export_labels(labelling, name)
    write_atomically(path, text.encode("utf-8"))
    typer.echo(f"{path}: {n_pairs:,} pairs, {n_labels:,} labels", err=True)
    if name == "label-studio":
        typer.echo(LABEL_STUDIO_CONFIG, nl=False)


@commands.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="The file to read.")],
    format_name: Format_ = None,
    labeler: Annotated[
        str | None, typer.Option("--labeler", help="Whose labels these are, where the file does not name anybody.")
    ] = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
) -> None:
    """Store labels of an exported file that was labelled elsewhere. Importing twice adds nothing.

    A table needs the columns `pair` and `choice` (1, 2 or 0), or `pair_id` and `label` (a, b or tie: control, treatment). A
    label that cannot be read, or of a pair that is not in this log, stops the import, and nothing is stored.

    ```
    evalpipe label import pairs-labelled.csv --labeler ana
    ```
    """
    from evalpipe.errors import DataError
    from evalpipe.workspace.label import LabelOptions, import_labels, open_labelling
    from evalpipe.workspace.paths import open_workspace

    name = _format(format_name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    with open_labelling(open_workspace(config, data), LabelOptions(experiment=experiment)) as labelling:
        n_found, n_new = import_labels(labelling, text, name, labeler=labeler)
    typer.echo(f"{path}: {n_found:,} labels, {n_new:,} of them new", err=True)


def _format(name: str | None) -> Format | None:
    from evalpipe.errors import ConfigError
    from evalpipe.labels.interchange import FORMATS

    if name is None or name in FORMATS:
        return name  # type: ignore[return-value]
    raise ConfigError(f"--format {name!r}: choose one of {', '.join(FORMATS)}")


def _count_lines(counts: LabelCounts) -> list[str]:
    strata = ", ".join(f"{n:,} {name}" for name, n in sorted(counts.strata.items()))
    how = f"by the doubt of {counts.judge}: {strata}" if counts.judge and len(counts.strata) > 1 else "all alike"
    drawn = "drawn" if counts.is_stored else "would be drawn by `evalpipe label`"
    return [
        f"{counts.experiment}: {counts.n_drawn:,} of {counts.n_pairs:,} pairs {drawn} ({how}; seed {counts.seed!r}), "
        f"{counts.overlap:.0%} for everybody",
        _given_line(counts),
    ]


def _given_line(counts: LabelCounts) -> str:
    people = ", ".join(f"{name} {n:,}" for name, n in counts.by_labeler.items())
    n, n_pairs, done = sum(counts.by_labeler.values()), counts.n_labelled_pairs, counts.n_labelled_drawn
    return (
        f"{n:,} label{'' if n == 1 else 's'} of {n_pairs:,} pair{'' if n_pairs == 1 else 's'}"
        + (f" ({people})" if people else "")
        + f"; {done:,} of the {counts.n_drawn:,} pairs of this draw "
        + ("has a label" if done == 1 else "have a label")
    )


def _needed_lines(needed: LabelsNeeded) -> list[str]:
    wanted = f"± {100 * needed.half_width:g}"
    looks = {"anytime": "at any look", "fixed": "at one look", "scheduled": "on the planned dates"}[needed.looks]
    variance = {"labels": "of the labels so far", "at most": "the most there can be"}[needed.variance_from]
    within = {"labels": "by the labels so far", "judge": "by the judge", "at most": "the most there can be"}
    lines = [
        f"{wanted} points of the corrected win rate as the report shows it, {looks}; {needed.n_pairs:,} pairs of "
        f"{needed.n_users:,} users",
        f"  variance of a pair {needed.variance:.3f} ({variance}); correlation of a user's pairs {needed.within_user:.2f} "
        f"({within[needed.within_from]})",
    ]

    def line(what: str, n: int | None) -> str:
        if n is None:
            return f"  {what:<52} more than all {needed.n_pairs:,} pairs"
        minutes = n * needed.seconds / 60
        time = f"{minutes:,.0f} min" if minutes < 90 else f"{minutes / 60:,.1f} h"
        return f"  {what:<52} {n:>7,} labels  about {time}"

    if needed.alone is None:  # a judge does not help either: it has verdicts on the pairs of the same users
        width = needed.half_width_of_all
        reached = "show no interval" if width is None else f"give about ± {100 * width:.0f} points"
        users = "more users than there are" if needed.users_needed is None else f"about {needed.users_needed:,} users"
        return [*lines, f"  all {needed.n_pairs:,} pairs of this log {reached}; {wanted} needs {users}"]
    lines.append(line("people alone", needed.alone))
    for rho, n in needed.with_judge.items():
        measured = "as measured" if needed.correlation is not None else "an assumption"
        lines.append(line(f"with the judge, correlation {rho:.2f} ({measured})", n))
    return lines
