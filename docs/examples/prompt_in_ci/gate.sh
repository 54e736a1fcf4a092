#!/usr/bin/env bash
# The step of a pull request: exit code 0 ship, 10 keep, 11 collect_more, 12 invalid (see docs/how-to/ci.md).
set -euo pipefail
python "$(dirname "$0")/answer.py" > answers.jsonl
evalpipe load answers.jsonl --experiment prompt
evalpipe judge --experiment prompt --max-usd 1
evalpipe report --experiment prompt --format markdown > comment.md
evalpipe gate --experiment prompt
