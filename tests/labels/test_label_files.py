"""`label export` and `label import`: the draw as a file of another tool, as blind as the page, and its labels back."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from label_harness import CONTROL, TREATMENT, make_workspace, rows

from evalpipe.cli.app import main
from evalpipe.errors import ConfigError, DataError
from evalpipe.labels.interchange import FORMATS, read_labels, user_id
from evalpipe.labels.sampling import control_first
from evalpipe.workspace.label import LabelOptions, import_labels, open_labelling, token_of
from evalpipe.workspace.paths import Workspace

PREFERRED = {"r0": 0.0, "r1": 1.0, "r2": 0.5}


def labelled(root: Path) -> Workspace:
    """Six pairs; Ana has labelled three of them, with a comment on one."""
    found = make_workspace(root, 6)
    with open_labelling(found, LabelOptions(n_pairs=6, overlap=0.0, seed="f")) as labelling:
        while True:
            pair, *_ = labelling.next_pair("Ana")
            if pair is None:
                break
            if pair.request_id not in PREFERRED:
                labelling.skip("Ana", pair.token)
                continue
            preference = PREFERRED[pair.request_id]
            first = "control" if CONTROL in pair.first.text else "treatment"
            choice: Any = "0" if preference == 0.5 else "1" if (preference == 0.0) == (first == "control") else "2"
            scores = (5.0, 1.0) if first == "control" else (1.0, 5.0)
            comment = "=1+1, said Ana" if pair.request_id == "r1" else None
            labelling.label("Ana", pair.token, choice, comment=comment, scores=scores)
    return found


def run(root: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["label", *words, "--config", str(root / "evalpipe.toml")])
    return int(ended.value.code or 0)


def seat_of(request_id: str, preference: float) -> str:
    """What a person writes who prefers that arm, by where the file shows it."""
    if preference == 0.5:
        return "tie"
    return "first" if (preference == 0.0) == control_first("f", request_id, "") else "second"


@pytest.mark.parametrize("name", FORMATS)
def test_labels_survive_the_way_through_another_tool(tmp_path: Path, name: str) -> None:
    labelled(tmp_path / "one")
    path = tmp_path / f"pairs.{'csv' if name == 'csv' else 'json'}"
    assert run(tmp_path / "one", "export", str(path), "--format", name) == 0
    text = path.read_text(encoding="utf-8")
    for word in ("secret-model", "treatment", '"r1"', ",r1,"):
        assert word not in text, word
    make_workspace(tmp_path / "two", 6)
    with open_labelling(
        make_workspace(tmp_path / "two", 6), LabelOptions(n_pairs=6, overlap=0.0, seed="f")
    ) as labelling:
        # An Argilla user is an id: who it is, is only known where that person has labelled before.
        who = {"labeler": "Ana"} if name == "argilla" else {}
        assert import_labels(labelling, text, None, **who) == (3, 3)
        assert import_labels(labelling, text, None, **who) == (3, 0)
        found = labelling.workspace
    got = rows(
        found,
        "SELECT request_id, preference, labeler, note, probability, control_score, treatment_score FROM labels ORDER BY 1",
    )
    scores = (5.0, 1.0) if name == "csv" else (None, None)
    assert got == [
        ("r0", 0.0, "Ana", None, 1.0, *scores),
        ("r1", 1.0, "Ana", "'=1+1, said Ana" if name == "csv" else "=1+1, said Ana", 1.0, *scores),
        ("r2", 0.5, "Ana", None, 1.0, *scores),
    ]


def test_a_table_is_filled_in_by_hand(tmp_path: Path) -> None:
    found = labelled(tmp_path)
    assert run(tmp_path, "export", str(tmp_path / "pairs.csv")) == 0
    table = list(csv.DictReader(io.StringIO((tmp_path / "pairs.csv").read_text(encoding="utf-8"), newline="")))
    assert [len(table), sum(bool(row["choice"]) for row in table)] == [6, 3]
    by_token = {token_of("f", f"r{n}"): f"r{n}" for n in range(6)}
    for row in table:
        request = by_token[row["pair"]]
        first = CONTROL if control_first("f", request, "") else TREATMENT
        assert row["answer_1"] == f"{first} answer {request[1:]}"
        if row["choice"]:
            row["choice"] = ""
        else:  # Bo prefers the treatment in all that are open
            row["choice"] = {"first": "1", "second": "2"}[seat_of(request, 1.0)]
    with (tmp_path / "by-bo.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    assert run(tmp_path, "import", str(tmp_path / "by-bo.csv"), "--labeler", "Bo") == 0
    got = rows(found, "SELECT request_id, preference FROM labels WHERE labeler = 'Bo' ORDER BY request_id")
    assert got == [("r3", 1.0), ("r4", 1.0), ("r5", 1.0)]


def test_label_studio_results_are_read_as_its_export_has_them(tmp_path: Path) -> None:
    """The shape of Label Studio's JSON export (labelstud.io/guide/task_format): `completed_by` a number or an object, a tie as an
    annotation without a selection, a skipped task as a cancelled one."""
    found = make_workspace(tmp_path, 6)

    def task(n: int, result: Any, **annotation: Any) -> dict[str, Any]:
        return {
            "id": n,
            "project": 1,
            "data": {"pair": token_of("f", f"r{n}")},
            "annotations": [{"result": result, **annotation}],
        }

    def pairwise(seat: str) -> list[dict[str, Any]]:
        return [
            {
                "id": "x",
                "from_name": "better",
                "to_name": "answer1,answer2",
                "type": "pairwise",
                "value": {"selected": seat},
            }
        ]

    tasks = [
        task(0, pairwise("left"), completed_by=7, created_at="2026-03-09T21:52:49.513742Z", lead_time=4.2),
        task(1, pairwise("right"), completed_by={"id": 8, "email": "bo@x.example"}),
        task(2, [], completed_by=7, was_cancelled=False),
        task(3, [], completed_by=7, was_cancelled=True),
        {"id": 4, "data": {"pair": token_of("f", "r4")}, "annotations": []},
    ]
    with open_labelling(found, LabelOptions(n_pairs=6, overlap=0.0, seed="f")) as labelling:
        assert import_labels(labelling, json.dumps(tasks), None) == (3, 3)
    got = rows(found, "SELECT request_id, preference, labeler FROM labels ORDER BY request_id")
    left = {n: 0.0 if control_first("f", f"r{n}", "") else 1.0 for n in range(6)}
    assert got == [
        ("r0", left[0], "label-studio:7"),
        ("r1", 1 - left[1], "bo@x.example"),
        ("r2", 0.5, "label-studio:7"),
    ]


def test_argilla_records_are_read_as_its_export_has_them(tmp_path: Path) -> None:
    """`dataset.records.to_json` (argilla 2): responses by question, each with a value and the user's id."""
    found = labelled(tmp_path)
    record = {
        "id": token_of("f", "r4"),
        "fields": {},
        "metadata": {},
        "suggestions": {},
        "responses": {
            "better": [
                {"value": "answer_2", "user_id": user_id("Ana")},
                {"value": "tie", "user_id": "9c2f"},
                {"value": "answer_1", "user_id": "draft", "status": "draft"},
            ],
            "comment": [{"value": "good", "user_id": user_id("Ana")}],
        },
        "vectors": {},
        "_server_id": "1",
    }
    with open_labelling(found, LabelOptions()) as labelling:
        assert import_labels(labelling, json.dumps([record]), None) == (2, 2)
    second = 1.0 if control_first("f", "r4", "") else 0.0
    got = rows(found, "SELECT labeler, preference, note FROM labels WHERE request_id = 'r4' ORDER BY labeler")
    assert got == [("Ana", second, "good"), ("argilla:9c2f", 0.5, None)]


def test_a_table_of_ones_own_names_requests_and_arms(tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 4)
    text = "pair_id,label,labeler\nr0,a,Ana\nr1,Treatment,Ana\nr2,tie,Bo\nr3,,Bo\n"
    with open_labelling(found, LabelOptions(n_pairs=2)) as labelling:
        assert import_labels(labelling, text, None) == (3, 3)
    assert rows(found, "SELECT request_id, preference FROM labels ORDER BY 1") == [
        ("r0", 0.0),
        ("r1", 1.0),
        ("r2", 0.5),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair,choice,labeler\nr0,3,Ana\n", "line 2: choice = '3': 1, 2 or 0"),
        ("pair_id,label,labeler\nr0,c,Ana\n", "line 2: label = 'c': a, b or tie"),
        ("pair,choice,labeler\nnobody,1,Ana\n", "no pair 'nobody' with answers of both arms"),
        ("pair,choice,labeler\n,1,Ana\n", "line 2: the label names no pair"),
        ("pair,choice,labeler,labeled_at\nr0,1,Ana,yesterday\n", "labeled_at = 'yesterday' is no time"),
        ("pair,choice,score_1,labeler\nr0,1,good,Ana\n", "a score of 'good' is no number"),
        ("question,answer\nx,y\n", "needs the columns pair and choice; it has question, answer"),
        ("[1, 2", "the file is not JSON"),
        ("[{}]", "not one of csv, label-studio, argilla"),
        (
            '[{"data": {"pair": "r0"}, "annotations": [{"result": [{"type": "pairwise", "value": {}}]}]}]',
            "task 1: the value",
        ),
        ('[{"id": "r0", "fields": {}, "responses": {"better": [{"value": 3}]}}]', "record 1: a response of better"),
    ],
)
def test_a_label_that_cannot_be_read_stops_the_import(tmp_path: Path, text: str, message: str) -> None:
    found = make_workspace(tmp_path, 2)
    with open_labelling(found, LabelOptions()) as labelling, pytest.raises(DataError) as raised:
        import_labels(labelling, text, None)
    assert message in str(raised.value)
    assert rows(found, "SELECT * FROM labels") == []


def test_whose_labels_they_are_must_be_known(tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 2)
    with open_labelling(found, LabelOptions()) as labelling, pytest.raises(ConfigError, match="add --labeler NAME"):
        import_labels(labelling, "pair,choice\nr0,1\n", None)
    assert read_labels("pair,choice\nr0,1\n", None, labeler="Ana")[0].labeler == "Ana"


def test_status_reads_only_and_pairs_is_honoured_until_somebody_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = make_workspace(tmp_path, 120)
    journal = found.data / "labels/experiment=t/labelling.jsonl"
    assert run(tmp_path, "--status") == 0
    assert "t: 100 of 120 pairs would be drawn by `evalpipe label`" in capsys.readouterr().out
    assert not journal.exists()
    with open_labelling(found, LabelOptions(n_pairs=80, overlap=0.0)) as labelling:
        assert len(labelling.drawn()) == 80
    with open_labelling(found, LabelOptions(n_pairs=50)) as labelling:  # nobody has labelled: another size is as good
        assert {pair.probability for pair, _ in labelling.drawn()} == {50 / 120}
        pair, *_ = labelling.next_pair("Ana")
        assert pair is not None
        labelling.label("Ana", pair.token, "1")
    before = journal.read_bytes()
    assert run(tmp_path, "--status") == 0
    status = capsys.readouterr().out
    assert "t: 50 of 120 pairs drawn" in status
    assert "1 label of 1 pair (Ana 1); 1 of the 50 pairs of this draw has a label" in status
    assert run(tmp_path, "--pairs", "40") != 0
    error = capsys.readouterr().err
    assert "so --pairs 40 cannot make the draw smaller" in error
    assert "--new-draw" in error
    assert error.count("\n") == 1
    assert run(tmp_path, "--status", "--pairs", "60") == 0
    assert "t: 60 of 120 pairs would be drawn" in capsys.readouterr().out
    assert journal.read_bytes() == before
    # Another draw: what was labelled before is still counted, and the progress is that of the new one.
    with open_labelling(found, LabelOptions(n_pairs=40, seed="other", new_draw=True)) as labelling:
        is_again = pair.request_id in {one.request_id for one, _ in labelling.drawn()}
    assert run(tmp_path, "--status") == 0
    again = "1 of the 40 pairs of this draw has" if is_again else "0 of the 40 pairs of this draw have"
    assert f"1 label of 1 pair (Ana 1); {again} a label" in capsys.readouterr().out


def test_labels_of_a_file_are_in_the_status_and_keep_the_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = make_workspace(tmp_path, 20)
    with open_labelling(found, LabelOptions(n_pairs=20)) as labelling:
        import_labels(labelling, "pair_id,label,labeler\nr0,a,Ana\nr1,b,Ana\nr1,a,Bo\n", None)
    assert run(tmp_path, "--status") == 0
    assert "3 labels of 2 pairs (Ana 2, Bo 1); 2 of the 20 pairs of this draw have a label" in capsys.readouterr().out
    assert run(tmp_path, "--pairs", "10") != 0
    assert "--new-draw" in capsys.readouterr().err


def test_the_command_line_in_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled(tmp_path)
    assert run(tmp_path, "--status") == 0
    assert "t: 6 of 6 pairs drawn (all alike; seed 'f'), 0% for everybody" in capsys.readouterr().out
    assert run(tmp_path, "--status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["by_labeler"] == {"Ana": 3}
    assert run(tmp_path, "--estimate", "5") == 0
    assert "all 6 pairs of this log" in capsys.readouterr().out
    assert run(tmp_path, "--estimate", "5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["n_pairs"] == 6
    (tmp_path / "there.csv").write_text("")
    for words, message in (
        (["export", str(tmp_path / "x.json")], "which format?"),
        (["export", str(tmp_path / "there.csv")], "exists; give another name"),
        (["export", str(tmp_path / "x.csv"), "--format", "xml"], "choose one of csv, label-studio, argilla"),
        (["import", str(tmp_path / "missing.csv")], "cannot read"),
        (["--estimate", "80"], "between 0 and 50"),
        (["--host", "0.0.0.0"], "set a token in $EVALPIPE_TOKEN"),
        (["--allow-host", "a b/c"], "is no host name"),
    ):
        assert run(tmp_path, *words) != 0
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1], error
