"""HTML, JSON, Markdown, CSV and terminal say the same numbers: one test holds them side by side."""

from __future__ import annotations

import csv
import html.parser
import io
import json

from report_builders import mixed
from rich.console import Console

from evalpipe.report.render import render
from evalpipe.report.text import print_summary, render_csv, render_markdown
from evalpipe.report.view import report_view
from evalpipe.workspace.report import report_json


class Rows(html.parser.HTMLParser):
    """The decision table of a report: per metric its data attributes and the texts of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, dict[str, str]] = {}
        self.cells: dict[str, list[str]] = {}
        self._metric: str | None = None
        self._depth = 0
        self._value = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "tr":
            self._metric = found.get("data-metric")
            if self._metric:
                self.rows[self._metric] = found
                self.cells[self._metric] = []
        classes = found.get("class", "").split()
        self._value = (
            self._metric is not None and tag == "span" and bool({"value", "interval-text", "finding"} & {*classes})
        )
        if self._value and self._metric:
            self.cells[self._metric].append("")
        if tag == "span" and "mark" in classes and self._metric:
            self._value = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._value = False

    def handle_data(self, data: str) -> None:
        if self._value and self._metric and self.cells[self._metric]:
            self.cells[self._metric][-1] += data


def test_every_form_of_the_report_says_the_same_numbers() -> None:
    analysis = mixed()
    page = Rows()
    page.feed(render(analysis))
    document = json.loads(report_json(analysis))
    sheet = {row["metric"]: row for row in csv.DictReader(io.StringIO(render_csv(analysis)))}
    markdown = {
        cells[0]: cells
        for line in render_markdown(analysis).splitlines()
        if line.startswith("| ") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 5
    }
    console = Console(file=io.StringIO(), width=250, color_system=None)
    print_summary(analysis, console)
    terminal = console.file.getvalue()  # type: ignore[attr-defined]
    marked = {row.name: row.marked_label for row in report_view(analysis).rows}
    lines = {
        metric["label"]: next(
            line for line in terminal.splitlines() if line.strip().startswith(f"{marked[metric['name']]} ")
        )
        for metric in document["metrics"]
    }

    # What decides is first, what only informs below it.
    roles = {metric["name"]: metric["role"] == "diagnostic" for metric in document["metrics"]}
    assert list(page.rows) == sorted(roles, key=lambda name: roles[name])
    assert len(document["metrics"]) == 12
    for metric in document["metrics"]:
        name, label = metric["name"], metric["label"]
        # The numbers themselves, to the last digit: HTML attributes, JSON, CSV.
        pairs = [
            ("control", metric["control"]["value"]),
            ("treatment", metric["treatment"]["value"]),
            ("difference", metric["difference"]),
            ("ci_low", metric["ci_low"]),
            ("ci_high", metric["ci_high"]),
        ]
        for key, number in pairs:
            assert float(page.rows[name][f"data-{key.replace('_', '-')}"]) == number == float(sheet[name][key])
        assert page.rows[name]["data-outcome"] == metric["finding"] == sheet[name]["finding"]
        # The numbers as people read them: HTML cells, Markdown cells, terminal line.
        control, treatment, difference, *interval, finding = (cell.strip() for cell in page.cells[name])
        # Without a conclusion there is no difference to read anywhere; the JSON keeps what was computed.
        assert bool(interval) == (metric["finding"] != "undefined")
        change = f"{difference} ({interval[0]})" if interval else "–"
        shown = [marked[name], control, treatment, change, " ".join(finding.split())]
        assert markdown[marked[name]] == shown
        assert [part for part in shown if part not in " ".join(lines[label].split(" ")).replace("  ", " ")] == []


def test_what_is_read_is_the_json_number_rounded() -> None:
    page = Rows()
    page.feed(render(mixed()))
    # Derived by hand: 0.005 → 0.50 %, half width (0.002+0.006)/2 = 0.4 points → two decimals; 0.08/0.03 margins and so on.
    assert [cell.replace("\u00a0", " ") for cell in page.cells["error_rate"][:4]] == [
        "0.50 %", "0.30 %", "−0.20 points", "−0.60 to +0.20 points",
    ]  # fmt: skip
    assert [cell.replace("\u00a0", " ") for cell in page.cells["cost_per_request_usd"][:4]] == [
        "$0.002134", "$0.001472", "−31.0 %", "−33.0 to −29.0 %",
    ]  # fmt: skip
