"""`evalpipe report` on a real store: a pairs file is loaded, analysed and written in every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from evalpipe.cli.load import load
from evalpipe.cli.report import report
from evalpipe.errors import ConfigError, EvalpipeError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pairs judged in both orders: treatment wins 12, loses 4, and 4 times the judge contradicts itself."""
    folder = tmp_path_factory.mktemp("workspace")
    lines = []
    for n in range(20):
        first, second = ("b", "b") if n < 12 else ("a", "a") if n < 16 else ("a", "b")
        judgements = [
            {"judge": "j", "order": order, "verdict": verdict} for order, verdict in (("ab", first), ("ba", second))
        ]
        pair = {"pair_id": f"p{n}", "prompt": f"Question {n}?", "response_a": f"old {n}", "response_b": f"new **{n}**"}
        lines.append(json.dumps(pair | {"model_a": "m-a", "model_b": "m-b", "judgements": judgements}))
    (folder / "trial.jsonl").write_text("\n".join(lines))
    run(folder, "load", "--format", "pairs", str(folder / "trial.jsonl"))
    return folder


def run(folder: Path, *arguments: str) -> Result:
    app = typer.Typer()
    app.command()(load)
    app.command()(report)
    data = ["--data", str(folder / "data")]
    result = CliRunner().invoke(app, [arguments[0], *data, *arguments[1:]])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_html_and_json_are_written_and_the_summary_printed(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(workspace, "report", "-e", "trial")
    page = (tmp_path / "reports" / "trial.html").read_text()
    document = json.loads((tmp_path / "reports" / "trial.json").read_bytes())
    # 12 whole wins and 4 halves of 20 pairs: θ = 14/20; consistent in 16 of 20.
    assert document["judges"][0]["win_rate"] == pytest.approx(0.7)
    assert document["judges"][0]["consistency"] == pytest.approx(0.8)
    row = next(m for m in document["metrics"] if m["name"] == "win_rate")
    assert f'data-treatment="{row["treatment"]["value"]}"' in page
    assert "70" in result.stdout
    assert "trial.html" in result.stderr
    assert "judge contradicted itself (4)" in page


def test_every_form_goes_to_stdout(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = json.loads(run(workspace, "report", "-e", "trial", "--format", "json").stdout)
    assert document["experiment"] == "trial"
    assert json.loads(run(workspace, "report", "-e", "trial", "--json").stdout)["experiment"] == "trial"
    assert run(workspace, "report", "-e", "trial", "--format", "markdown").stdout.startswith("## trial: ")
    assert run(workspace, "report", "-e", "trial", "--format", "csv").stdout.startswith("metric,label,")
    run(workspace, "report", "-e", "trial", "--format", "csv", "-o", str(tmp_path / "x" / "a.csv"))
    assert (tmp_path / "x" / "a.csv").read_text().startswith("metric,")


def test_compare_and_index(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        run(workspace, "report", "-e", "trial", "-o", str(tmp_path / "reports" / f"{name}.html"))
    run(workspace, "report", "--compare", "reports/one.json", "reports/two.json")
    assert (tmp_path / "reports" / "compare-one-two.html").exists()
    pair = ("--compare", "reports/one.json", "reports/two.json")
    markdown = run(workspace, "report", *pair, "--format", "markdown").stdout
    document = json.loads(run(workspace, "report", *pair, "--format", "json").stdout)
    assert json.loads(run(workspace, "report", *pair, "--json").stdout) == document
    row = next(metric for metric in document["metrics"] if metric["name"] == "win_rate")
    assert (
        row["a"]
        == row["b"]
        == next(m for m in metrics_of(tmp_path / "reports" / "one.json") if m["name"] == "win_rate")
    )
    assert f"| Win rate | +20 points (−10 to +33 points) {row['a']['finding']} |".split(" (")[0] in markdown.replace(
        "\u00a0", " "
    )
    with pytest.raises(ConfigError, match="--compare has no --format csv"):
        run(workspace, "report", *pair, "--format", "csv")
    said = run(workspace, "report", "--index")
    assert "lists 2 reports" in said.stderr
    assert 'href="one.html"' in (tmp_path / "reports" / "index.html").read_text()
    (tmp_path / "reports" / "two.json").unlink()
    assert "lists 1 report)" in run(workspace, "report", "--index").stderr
    with pytest.raises(ConfigError, match="--index is a page"):
        run(workspace, "report", "--index", "--format", "csv")


def metrics_of(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_bytes())["metrics"])


def test_what_is_not_there_is_one_line(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvalpipeError) as caught:
        run(tmp_path, "report", "-e", "absent")
    assert "\n" not in str(caught.value)


def test_a_look_is_kept_and_a_part_of_the_log_is_not(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(workspace, "report", "-e", "trial", "--where", "request_id <> 'p1'", "-o", "part.html")
    run(workspace, "report", "-e", "trial", "--judge", "j", "-o", "other.html")
    assert not (tmp_path / "reports").exists()
    run(workspace, "report", "-e", "trial", "--no-texts")
    folder = tmp_path / "reports" / "trial"
    (kept,) = folder.glob("*Z.json")
    assert kept.read_bytes() == (tmp_path / "reports" / "trial.json").read_bytes()
    assert "Question 1?" not in kept.with_suffix(".html").read_text()
    assert (folder / "index.html").exists()
    assert 'href="trial/index.html"' in (tmp_path / "reports" / "index.html").read_text()
    again = run(workspace, "report", "-e", "trial")
    assert "Since the report of " in again.stderr
    assert "no new pairs, win rate 70 → 70" in again.stderr.replace("\u00a0", " ")
    assert "Since the report of " in (tmp_path / "reports" / "trial.html").read_text()
