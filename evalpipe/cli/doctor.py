"""`evalpipe doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from evalpipe.cli import options

if TYPE_CHECKING:
    from evalpipe.workspace.damaged import DamagedFile


MARKS = {"pass": "ok  ", "warn": "warn", "fail": "FAIL"}

Live = Annotated[
    bool, typer.Option("--live", help="Also send one real request to each arm and each judge; the cost is shown.")
]


def doctor(
    config: options.Config = None,
    data: options.Data = None,
    live: Live = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="Also join the Ray cluster and look at its nodes: versions and keys.  [default: [cluster] address]",
        ),
    ] = None,
    check_data: Annotated[
        bool,
        typer.Option("--check-data", help="Read every stored file, and move damaged ones to data/damaged/."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Report what is missing before a run: keys, unreachable upstreams, unwritable folders, unknown prices, broken judges.

    `evalpipe doctor --data`, without a folder, is `--check-data`: every page of every stored file is read against its checksum; a
    damaged file is moved to `data/damaged/`, and what is lost with it is listed. Until then the other commands read without
    it and name it.

    Examples:

    - `evalpipe doctor` (exit code 1 where a run would fail; without --live nothing is sent to a provider)

    - `evalpipe doctor --live`

    - `evalpipe doctor --data`

    - `evalpipe doctor --ray 10.0.0.1:6379`
    """
    from evalpipe.text import printable
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(config, data, pull=check_data)
    if check_data:
        from evalpipe.workspace.damaged import move_damaged

        moved = move_damaged(workspace)
        if as_json:
            typer.echo(json.dumps([asdict(one) for one in moved], indent=2))
            return
        for one in moved:
            typer.echo(printable(_lost(one)))
        typer.echo("every stored file holds what was written to it" if not moved else _after(moved))
        return
    from evalpipe.workspace.doctor import diagnose

    found = diagnose(workspace)
    if live:
        from evalpipe.workspace.doctor_live import diagnose_live

        found += diagnose_live(workspace)
    if ray is not None:
        from evalpipe.cluster.doctor import diagnose_cluster

        found += diagnose_cluster(workspace, ray)
    if as_json:
        typer.echo(json.dumps([asdict(diagnosis) for diagnosis in found], indent=2))
    else:
        for diagnosis in found:
            remedy = f"  → {diagnosis.remedy}" if diagnosis.remedy else ""
            typer.echo(printable(f"{MARKS[diagnosis.status]}  {diagnosis.name}: {diagnosis.detail}{remedy}"))
    if any(diagnosis.status == "fail" for diagnosis in found):
        raise typer.Exit(1)


def _lost(one: DamagedFile) -> str:
    rows = "an unknown number of rows" if one.n_lost is None else f"{one.n_lost:,} rows"
    day = f" of {one.date}" if one.date else ""
    return f"damaged: {rows} of {one.dataset}{day} of experiment {one.experiment} are lost; moved to {one.moved_to}"


def _after(moved: list[DamagedFile]) -> str:
    paid = any(one.dataset == "judgments" for one in moved)
    again = "; `evalpipe judge` asks, and pays, for the lost judgments again" if paid else ""
    return f"moved {len(moved)} damaged file{'s' if len(moved) > 1 else ''}: copy it back from a backup where there is one{again}"
