"""The gate: exit codes, the verdict file the collector serves, and the plan, on a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalpipe.cli import main
from evalpipe.core.experiment import Recommendation
from evalpipe.pipeline.gate import VERDICT, watch
from evalpipe.pipeline.load import load
from evalpipe.pipeline.workspace import open_workspace


def _workspace(folder: Path, *, n: int, wins: int) -> None:
    """A workspace with `n` judged pairs of which the treatment won `wins`, loaded as the user would."""
    (folder / "evalpipe.toml").write_text(
        '[experiment]\nname = "e"\n[judge]\nname = "people"\n[decision.metrics.error_rate]\nmargin = 0.05\n'
        "[decision.metrics.timeout_rate]\nmargin = 0.05\n",
        encoding="utf-8",
    )
    lines = [
        {"pair_id": f"p{i}", "prompt": f"question {i}", "response_a": "one", "response_b": "two", "model_a": "x", "model_b": "y",
         "judgements": [{"judge": "people", "order": "single", "verdict": "b" if i < wins else "a"}]}
        for i in range(n)
    ]  # fmt: skip
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    load(open_workspace(root=folder), [folder / "pairs.jsonl"])


def _run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(str(ended.value.code))


@pytest.mark.parametrize(("wins", "wanted"), [(260, "ship"), (60, "keep"), (155, "collect_more")])
def test_exit_codes_and_the_verdict_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wins: int, wanted: str
) -> None:
    _workspace(tmp_path, n=300, wins=wins)
    code = _run(monkeypatch, tmp_path, "gate", "--json")
    document = json.loads(capsys.readouterr().out)
    assert (code, document["recommendation"]) == (Recommendation(wanted).exit_code, wanted)
    stored = json.loads((tmp_path / "data" / VERDICT).read_text(encoding="utf-8"))
    assert stored == document
    assert stored["experiment"] == "e"
    assert stored["reasons"]


def test_no_data_yet_is_collect_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evalpipe.toml").write_text('[experiment]\nname = "e"\n', encoding="utf-8")
    assert _run(monkeypatch, tmp_path, "gate") == 11


def test_watching_recomputes_only_when_files_change(tmp_path: Path) -> None:
    _workspace(tmp_path, n=60, wins=30)
    workspace = open_workspace(root=tmp_path)
    slept: list[float] = []
    verdicts = watch(workspace, every_s=5.0, sleep=slept.append)
    first, second = next(verdicts), next(verdicts)
    assert slept == [5.0]
    assert {**first, "computed_at": ""} == {**second, "computed_at": ""}


def test_plan_names_pairs_and_dollars_and_refuses_nonsense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _workspace(tmp_path, n=60, wins=30)
    assert _run(monkeypatch, tmp_path, "plan", "--metric", "win_rate", "--effect", "0.05", "--json", "--save") == 0
    plan = json.loads(capsys.readouterr().out)
    (goal,) = plan["metrics"]
    # 30 of 60 wins: variance .25·60/59; (1.959964 + 0.841621)² · variance / .05²
    assert goal["n_fixed"] == 799
    assert goal["n_star"] == 399
    record = json.loads((tmp_path / "data" / "experiments" / "e.json").read_text(encoding="utf-8"))
    assert (record["n_star"]["win_rate"], record["planned"]) == (399.0, True)
    for wrong in (["--metric", "win_rat"], ["--effect", "none"], ["--metric", "win_rate", "--effect", "60%"]):
        assert _run(monkeypatch, tmp_path, "plan", *wrong) == 2
