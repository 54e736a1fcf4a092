"""`evalpipe.open(…).decide()`: the gate's decision as an object, and as a table in a notebook."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import run_here
from fake_provider import FakeProvider, longer_wins
from test_judging_run import pairs, workspace

import evalpipe
from evalpipe.errors import ConfigError
from evalpipe.workspace.run import RunOptions, run_job

HOSTILE = "<img src=x onerror=alert(1)> \u202ebackwards"


def judged(folder: Path, n: int = 12, **changes: Any) -> Path:
    with FakeProvider(longer_wins) as provider:
        run_job(workspace(folder, provider.url, pairs(n, **changes)), RunOptions(show_progress=False))
    return folder


def gate(folder: Path, *words: str) -> tuple[dict[str, Any], int]:
    done = run_here("gate", "--json", *words, cwd=folder)
    return json.loads(done.stdout), done.returncode


def without_clock(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "computed_at"}


def test_it_is_the_gates_decision(tmp_path: Path) -> None:
    folder = judged(tmp_path)
    decision = evalpipe.open(folder).decide()
    document, code = gate(folder)
    assert without_clock(decision.to_dict()) == without_clock(document)
    assert (decision.recommendation, decision.exit_code) == (document["recommendation"], code)
    assert (decision.headline, list(decision.reasons)) == (document["headline"], document["reasons"])
    assert [dataclasses.asdict(one)["ci_low"] for one in decision.metrics] == [
        one["ci_low"] for one in document["metrics"]
    ]
    win_rate = next(one for one in decision.metrics if one.name == "win_rate")
    # The longer answer wins: control's in the six even pairs, treatment's in the six odd ones.
    assert (win_rate.treatment, win_rate.role, win_rate.confidence_level) == (0.5, "primary", 0.95)
    assert win_rate.ci_low is not None and win_rate.ci_low < 0 < (win_rate.ci_high or 0)
    assert decision.horizon is not None and decision.horizon.requests == document["horizon"]["requests"]
    kept = json.loads((folder / "data" / "verdict.json").read_text())
    assert without_clock(kept) == without_clock(document)
    assert str(decision).splitlines()[0] == " ".join(document["headline"].split())


def test_a_selection_is_the_gates_with_the_same_options(tmp_path: Path) -> None:
    folder = judged(tmp_path)
    before = (folder / "data" / "verdict.json").read_bytes()
    words = {"where": "request_id <> 'p0'"}
    from evalpipe.workspace.notebook import open_notebook

    decision = open_notebook(folder, **words).decide()
    document, _ = gate(folder, "--where", words["where"])
    assert without_clock(decision.to_dict()) == without_clock(document)
    assert (folder / "data" / "verdict.json").read_bytes() == before  # of a part it is no verdict


def test_before_there_are_data_it_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "evalpipe.toml").write_text('[experiment]\nname = "t"\n')
    with pytest.raises(ConfigError, match="no data of experiment 't'"):
        evalpipe.open(tmp_path).decide()


def test_it_cannot_be_changed_and_its_document_is_a_copy(tmp_path: Path) -> None:
    decision = evalpipe.open(judged(tmp_path, 4)).decide()
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.recommendation = "ship"  # type: ignore[misc]
    decision.to_dict()["reasons"].append("mine")
    assert "mine" not in decision.to_dict()["reasons"]
    assert isinstance(decision, evalpipe.Decision)


def test_in_a_notebook_it_is_a_table_and_texts_stay_texts(tmp_path: Path) -> None:
    decision = evalpipe.open(judged(tmp_path)).decide()
    page = decision._repr_html_()
    assert "Collect more data" in page and "<table>" in page and "95 % interval" in page
    assert page.count("<tr>") == 1 + len(decision.metrics)
    hostile = dataclasses.replace(
        decision,
        headline=HOSTILE,
        reasons=(HOSTILE,),
        metrics=(dataclasses.replace(decision.metrics[0], label=HOSTILE),),
    )
    shown = hostile._repr_html_()
    assert "<img" not in shown and shown.count("&lt;img") == 3 and "\u202e" not in shown


def test_importing_evalpipe_loads_nothing_heavy() -> None:
    code = (
        "import sys, evalpipe\n"
        "assert set(evalpipe.__all__) == {'Decision', 'Notebook', '__version__', 'open'} <= set(dir(evalpipe))\n"
        "heavy = {'pandas', 'numpy', 'scipy', 'duckdb', 'pyarrow', 'pydantic', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert evalpipe.Decision.__name__ == 'Decision' and evalpipe.Notebook.__name__ == 'Notebook'\n"
        "try:\n    evalpipe.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "module 'evalpipe' has no attribute 'nothing'\n"), done.stderr
