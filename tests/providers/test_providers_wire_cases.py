"""Answers that were once misread, as bytes on the wire: each file says what is stored of it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from evalpipe.models import Outcome
from evalpipe.providers.base import ENDPOINTS, Answer
from evalpipe.providers.registry import read_answer
from evalpipe.spool.format import Ended

CASES = "review/cases/wire/inputs"
OWN_FINDINGS = re.compile(r"W\d+|H[2346789]|H1[12]|A\d|T\d")
"""of the readers; what a path, a request or a price comes to has its tests beside those"""


def decoded(data: bytes) -> tuple[int, dict[str, str], bytes, bool]:
    """Status, headers, body and whether it is whole, of an answer as it stood on the wire."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "transfer-encoding" not in headers:
        return int(first.split()[1]), headers, body, len(body) == int(headers.get("content-length", len(body)))
    payload = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return int(first.split()[1]), headers, payload, True
        payload, body = payload + rest[:length], rest[length + 2 :]
    return int(first.split()[1]), headers, payload, False


def read_case(case: dict[str, Any]) -> Answer:
    pieces = [base64.b64decode(piece["base64"]) for piece in case["upstream_pieces"] if "base64" in piece]
    status, headers, body, is_whole = decoded(b"".join(pieces))
    ended: Ended = "complete" if is_whole else "cut"
    return read_answer(ENDPOINTS[case["request"]["path"]], status, headers, body, ended=ended)


@pytest.mark.shared
def test_answers_that_were_misread(shared: Path) -> None:
    folder = shared / CASES
    if not folder.is_dir():
        pytest.skip(f"no recorded cases at {folder}")
    n_cases = 0
    for path in sorted(folder.glob("*.json")):
        case = json.loads(path.read_text("utf-8"))
        if "upstream_pieces" not in case or OWN_FINDINGS.fullmatch(case["finding"]) is None:
            continue
        n_cases += 1
        answer = read_case(case)
        calls = [{"name": call["name"], "arguments": call["arguments"]} for call in answer.tool_calls]
        # A cost of null follows from tokens that are not known.
        costs = None if None in (answer.usage.input_tokens, answer.usage.output_tokens) else "known"
        stored: dict[str, Any] = {
            "outcome": answer.outcome.value,
            "text": answer.text,
            "tool_calls": calls,
            "error_type": answer.error_type,
            "error_message": answer.error_message,
            "input_tokens": answer.usage.input_tokens,
            "output_tokens": answer.usage.output_tokens,
            "cost_usd": costs,
            "status": 200,
        }
        for key, expected in case["expected"].items():
            if expected == "not ok":
                assert answer.outcome is not Outcome.OK, path.name
            elif key == "marked":
                assert answer.error_type == "not_text", path.name
                assert "image" in (answer.error_message or ""), path.name
            else:
                assert stored[key] == expected, f"{path.name}: {key}"
    assert n_cases >= 22
