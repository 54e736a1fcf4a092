"""The files `evalpipe report` leaves: whole or not at all, readable back, the sample the same byte for byte."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import re
import subprocess
from pathlib import Path

import pytest
from report_builders import demo_like, empty, example, metric, mixed, side

from evalpipe.errors import DataError, EvalpipeError
from evalpipe.report.compare import compare, comparison_markdown
from evalpipe.report.examples import sql_command
from evalpipe.report.render import render
from evalpipe.workspace.history import write_index
from evalpipe.workspace.report import (
    load_report,
    render_as,
    report_json,
    sample_report,
    write_analysis,
    write_comparison,
)


def test_html_and_json_are_written_and_read_back(tmp_path: Path) -> None:
    written = write_analysis(mixed(), tmp_path / "reports" / "a.html")
    assert written.json == tmp_path / "reports" / "a.json"
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["a.html", "a.json"]
    document = json.loads(written.json.read_bytes())
    assert document["schema_version"] == 1
    assert "examples" not in document
    assert [m["name"] for m in document["metrics"]] == [m.name for m in mixed().metrics]
    assert load_report(written.json) == dataclasses.replace(mixed(), examples=[])


def test_the_policy_allows_this_style_and_script_and_nothing_else() -> None:
    page = render(mixed())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    directives = dict(part.strip().split(" ", 1) for part in policy.group(1).replace("&#39;", "'").split(";"))
    assert directives["default-src"] == "'none'"
    assert "unsafe" not in policy.group(1)
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(blocks) == 1
        digest = base64.b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode()
        assert directives[directive] == f"'sha256-{digest}'"
    assert not re.search(r"<[^>]+\sstyle=", page)
    assert not re.search(r"<[^>]+\son[a-z]+=", page)


def test_two_renderings_are_the_same_bytes_and_the_sample_holds_no_version(tmp_path: Path) -> None:
    one = sample_report(mixed(), tmp_path / "one")
    two = sample_report(dataclasses.replace(mixed(), generated_at="2030-01-01T00:00:00Z"), tmp_path / "two")
    assert one.html.read_bytes() == two.html.read_bytes()
    assert one.json.read_bytes() == two.json.read_bytes()
    assert b"3.11.9" not in one.html.read_bytes() + one.json.read_bytes()


def test_the_sample_is_the_same_where_machines_differ_in_the_last_digits(tmp_path: Path) -> None:
    analysis = mixed()
    nudged = dataclasses.replace(
        analysis,
        metrics=[dataclasses.replace(m, difference=(m.difference or 0) * (1 + 1e-13)) for m in analysis.metrics],
    )
    pages = [sample_report(a, tmp_path / str(k)).html.read_bytes() for k, a in enumerate((analysis, nudged))]
    assert pages[0] == pages[1]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(EvalpipeError, match="cannot write"):
        write_analysis(empty(), blocked / "a.html")
    with pytest.raises(EvalpipeError, match="another ending"):
        write_analysis(empty(), tmp_path / "a.json")


def test_comparison_and_index(tmp_path: Path) -> None:
    write_analysis(mixed(), tmp_path / "march & <april>.html")
    write_analysis(demo_like(), tmp_path / "demo.html")
    (tmp_path / "other.json").write_text('{"not": "a report"}')
    page, n_reports = write_index(tmp_path, check=lambda data, name: data)
    assert n_reports == 2
    text = page.read_text()
    assert 'href="march%20%26%20%3Capril%3E.html"' in text
    assert "simulated judge" in text
    assert "1 JSON file in this folder could not be read" in text
    # The index leads to other files: unlike a report it does not say of itself that it can be mailed as it is.
    assert "mailed as it is" not in text
    assert "It links to the reports beside it" in text
    compared = write_comparison(tmp_path / "march & <april>.json", tmp_path / "demo.json", None, tmp_path)
    assert "Simulated judge" in compared.read_text()
    with pytest.raises(DataError, match="is not the JSON of a report"):
        load_report(tmp_path / "other.json")
    with pytest.raises(DataError, match="cannot read"):
        load_report(tmp_path / "absent.json")


def test_comparison_says_where_two_reports_agree() -> None:
    verdicts = {metric.label: metric.verdict for metric in compare(mixed(), demo_like()).metrics}
    assert verdicts["Win rate"].startswith("different")
    assert verdicts["Timeout rate"] == "only in one"
    assert verdicts["Error rate"] == "inconclusive, then equivalent; the intervals overlap"
    assert "| Win rate | " in comparison_markdown(mixed(), demo_like())


def test_a_spreadsheet_runs_nothing() -> None:
    analysis = dataclasses.replace(mixed(), metrics=[metric(label="=cmd|' /C calc'!A0", note="@SUM(1)")])
    rows = list(csv.DictReader(io.StringIO(render_as("csv", analysis).decode())))
    assert rows[0]["label"].startswith("'=")
    assert rows[0]["note"].startswith("'@")
    assert float(rows[0]["ci_low"]) == -0.006


def test_long_texts_are_cut_with_a_mark_and_the_command_for_the_rest() -> None:
    long = example(1, request_id='it\'s "$x"', control=side("word " * 1_000_000), treatment=side("короткий " * 40_000))
    page = render(dataclasses.replace(mixed(), examples=[long]))
    assert len(page) < 700_000
    assert "more characters were cut here" in page
    assert "evalpipe sql --experiment support-bot" in page
    assert "request_id = &#39;it&#39;&#39;s \\&#34;\\$x\\&#34;&#39;" in page


def test_many_long_examples_stay_under_the_size_of_a_mail() -> None:
    long = [example(n, control=side(f"{n} " + "a<b " * 6_000), treatment=side("c&d " * 6_000)) for n in range(50)]
    assert len(render(dataclasses.replace(mixed(), examples=long)).encode()) < 3_000_000


def test_at_most_so_many_examples() -> None:
    assert render(mixed(), max_examples=3).count('<details class="example"') == 3


def test_json_holds_no_lone_surrogate_and_no_nan() -> None:
    analysis = dataclasses.replace(mixed(), experiment="a\ud800b")
    assert "\\\\uD800" in report_json(analysis).decode()


@pytest.mark.parametrize(
    "request_id", ["plain-1", "it's", '"; rm -rf /; "', "$HOME `id` \\ end", "wow! 'so' !!", "a b"]
)
def test_the_command_for_the_rest_is_one_query_to_the_shell(request_id: str) -> None:
    shell = [
        "sh",
        "-c",
        f'evalpipe() {{ printf "%s\\0" "$@"; }}; {sql_command(request_id, "text", "trial", "treatment")}',
    ]
    said = subprocess.run(shell, capture_output=True, check=True, text=True).stdout.split("\0")[:-1]
    quoted = request_id.replace("'", "''")
    assert said == [
        "sql",
        "--experiment",
        "trial",
        f"SELECT text FROM exchanges WHERE request_id = '{quoted}' AND arm = 'treatment'",
    ]


def test_a_part_of_the_log_is_named_at_the_top() -> None:
    part = {"since": "2026-03-01T00:00:00+00:00", "where": "streamed", "until": None}
    page = render(dataclasses.replace(mixed(), provenance=mixed().provenance | {"selection": part}))
    assert "log rows since 1 Mar 2026, 00:00 UTC, where streamed" in page
