"""`evalpipe compare`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options


def compare(
    old: Annotated[Path, typer.Argument(help="Answers of the old model (control); or a file that holds both answers.")],
    new: Annotated[
        Path | None, typer.Argument(help="Answers of the new model (treatment) to the same prompts.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the comparison.  [default: of the files]")] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(
            "--judge-model", help="Who judges.  [default: a cheap model of the vendor whose key is in the environment]"
        ),
    ] = None,
    judge_base_url: Annotated[str | None, typer.Option("--judge-base-url", help="The judge's server.")] = None,
    judge_key_env: Annotated[
        str | None, typer.Option("--judge-key-env", help="Environment variable with the judge's key.")
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            "--map",
            help='Where things are: "prompt=question, text=answer", or text_a=… and text_b=…. '
            'Where the files name them otherwise: "text=answer|reply".',
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option("--arms", metavar="CONTROL,TREATMENT", help="Values of the arm column: control's, treatment's."),
    ] = None,
    log_format: Annotated[str, typer.Option("--format", "-f", help="auto, or a format of `evalpipe load`.")] = "auto",
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", min=0.0, help="Hard cap of what the judge may cost.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Judge only the first N pairs.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Spend without asking.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Two files of answers to one decision: read, pair, estimate, judge, report. It asks before it spends.

    The files may be in any format that `evalpipe load` reads. Answers are paired by their id, else by an equal
    prompt; what has no partner is counted and shown. `--map` takes several columns for one thing: the first that a file
    has counts. What only one file has (user, time, tokens, …) is taken from it and named.

    Outside of a workspace everything is kept in `./evalpipe-NAME/`. The same command on the same files goes on where it
    stopped, and nothing is asked or paid twice. Changed files are a new comparison (NAME-2), whose pairs are all judged and
    paid anew.

    Exit code 1 where the judge gave no verdict, 2 where a confirmation is needed and there is no terminal.

    ```
    evalpipe compare old.jsonl new.jsonl
    evalpipe compare old.jsonl new.csv --map "prompt=question|Prompt, text=answer|Answer (new), user=uid"
    evalpipe compare answers.csv --judge-model claude-haiku-4-5 --max-usd 2 --yes
    ```
    """
    from evalpipe.cli import judge_text
    from evalpipe.report.text import print_summary
    from evalpipe.workspace.compare import CompareOptions
    from evalpipe.workspace.compare import compare as run
    from evalpipe.workspace.paths import open_workspace
    from evalpipe.workspace.report import open_in_browser

    chosen = CompareOptions(
        name=name,
        judge_model=judge_model,
        judge_base_url=judge_base_url,
        judge_key_env=judge_key_env,
        mapping=mapping,
        arms=tuple(value.strip() for value in arms.split(",")) if arms else (),
        format_name=log_format,
        max_usd=max_usd,
        limit=limit,
        yes=yes,
    )
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    done = run(
        open_workspace(config, data),
        old,
        new,
        chosen,
        output=lambda line: typer.echo(line, err=True),
        confirm=(lambda question: typer.confirm(question, err=True)) if can_ask else None,
    )
    for line in judge_text.summary_lines([done.summary]):
        typer.echo(line, err=True)
    if as_json:
        typer.echo(done.report.json.read_text("utf-8"), nl=False)
    else:
        print_summary(done.report.analysis)
        decision = done.report.analysis.decision
        typer.echo(f"decision: {decision.recommendation}")
    typer.echo(json.dumps(str(done.report.html)) if as_json else f"page: {done.report.html}", err=as_json)
    folder = done.report.html.parent.parent
    if not as_json and folder != Path.cwd():
        typer.echo(f"the other commands work there, e.g. cd {shlex.quote(str(folder))} && evalpipe gate")
    if open_ and not open_in_browser(done.report.html):
        typer.echo("no browser could be started here: open the file yourself", err=True)
    if done.summary.stopped == "interrupted":
        return 130
    return 1 if done.summary.is_failure else 0
