"""Writes docs/reference/ from the code (command line, configuration, error messages), and the example notebook as a page.

`python docs/generate.py` writes the pages, `python docs/generate.py --check` exits 1 where one of them is stale.
Nothing on these pages depends on the names of modules, so moving code does not make them stale.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

import evalpipe
from evalpipe.cli.app import COMMANDS, build_app
from evalpipe.config import Config

FOLDER = Path(__file__).resolve().parent
PACKAGE = Path(evalpipe.__file__).resolve().parent
NOTE = "<!-- Written by docs/generate.py from the code. Do not edit: run `make docs-reference`. -->\n"


# ---------------------------------------------------------------------------------------------------- command line


def cli_page() -> str:
    """Every command with its usage, arguments and options, as the program's own `--help` has them."""
    root: Any = get_command(build_app())
    parts = [
        NOTE,
        "# Command line",
        "Every command has `--help`. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. "
        "`evalpipe gate` has its own: 0 ship, 10 keep, 11 collect_more, 12 invalid. With `--json` a command prints one JSON "
        "document on stdout and nothing else there; progress and messages go to stderr.",
        "| command | what it does |\n|---|---|\n"
        + "\n".join(
            f"| [`evalpipe {name}`](#evalpipe-{name}) | {_cell(_first_line(root.commands[name]))} |"
            for name, _, _ in COMMANDS
        ),
        "Options of `evalpipe` itself:\n\n" + _options(root, "evalpipe"),
    ]
    for name, _, _ in COMMANDS:
        parts += _command(root.commands[name], f"evalpipe {name}", level=2)
    return "\n\n".join(part for part in parts if part) + "\n"


def _command(command: Any, words: str, *, level: int) -> list[str]:
    context = command.make_context(words, [], resilient_parsing=True)
    usage = " ".join([words, *command.collect_usage_pieces(context)])
    parts = [f"{'#' * level} {words}", _help(command), f"```text\n{usage}\n```", _options(command, words)]
    for name, sub in sorted(getattr(command, "commands", {}).items()):
        if not getattr(sub, "hidden", False):
            parts += _command(sub, f"{words} {name}", level=level + 1)
    return parts


def _help(command: Any) -> str:
    text = (command.help or "").replace("\f", "").strip()
    return re.sub(r"\n{2,}(?=- )", "\n", text).replace("Examples:\n- ", "Examples:\n\n- ")


def _first_line(command: Any) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split())


def _options(command: Any, words: str) -> str:
    context = command.make_context(words, [], resilient_parsing=True)
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        record = parameter.get_help_record(context) if hasattr(parameter, "get_help_record") else None
        left, right = record or (parameter.name, getattr(parameter, "help", None) or "")
        rows.append(f"| `{left.strip()}` | {_cell(' '.join(right.split()))} |")
    return "| argument or option | |\n|---|---|\n" + "\n".join(rows) if rows else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ---------------------------------------------------------------------------------------------------- configuration


def configuration_page() -> str:
    """Every key of evalpipe.toml: type and default from the model, meaning from the template that `init` writes."""
    meanings = _template_comments()
    parts = [
        NOTE,
        "# Configuration: evalpipe.toml",
        "`evalpipe init` writes this file with every key and a comment. An unknown key, a wrong type or an impossible value "
        "is an error (exit code 2) that names the key, the value and what is allowed. Secrets never stand in the file: keys "
        "such as `api_key_env` name environment variables. `evalpipe doctor` checks the file, the keys and the addresses.",
        "A judge's own file, `judges/NAME.toml`, is described in [Judges](../how-to/judges.md).",
    ]
    parts += _section(Config, (), meanings)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(model: type[BaseModel], path: tuple[str, ...], meanings: dict[str, str]) -> list[str]:
    rows, below = [], []
    for name, field in model.model_fields.items():
        where = (*path, name)
        table, many = _table_of(field)
        if table is not None and not many and name != "margin":
            heading = [f"## [{'.'.join(where)}]"] if where != ("arms",) else []
            below += heading + _section(table, where, meanings)
        elif table is not None and many == "dict":
            heading = f"[{'.'.join(where)}.NAME]"
            below += [f"## {heading}", *_section(table, (*where, "NAME"), meanings)]
        elif path or name not in {"segments"}:
            meaning = _meaning(where, meanings)
            rows.append(f"| `{name}` | {_cell(_type(field))} | {_cell(_default(field))} | {_cell(meaning)} |")
        else:
            below += [f"## [{name}]", f'`NAME = "expression"`: {meanings.get(f"[{name}]", "")}'.strip()]
    table_text = "| key | value | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) if rows else ""
    opening = meanings.get("[" + ".".join(path) + "]", "")
    return [opening[:1].upper() + opening[1:] + "." if opening else "", table_text, *below]


WITHOUT_COMMENT = {
    "experiment.name": "names files and metrics; letters, digits, `.`, `_` and `-`, at most 64",
    "arms.provider": "the dialect of the arm's server: openai | anthropic | litellm (the library where no base_url is set)",
    "arms.base_url": "the provider's address; left out: the vendor's own. How it is extended: "
    "[Addresses](../how-to/collect.md#addresses)",
    "arms.model": "the model that is asked for copies, and for served requests of the treatment",
    "arms.rewrite": "write model, params and system prompt into served control requests, too; a warning is printed",
    "arms.api_key_env": "environment variable that holds the arm's key",
    "arms.system_prompt_file": "replaces the system prompt: for testing a prompt",
    "arms.params": "overrides request parameters",
    "arms.drop": "request fields this server does not accept: removed from its requests",
    "arms.infrastructure_usd_per_request": "added to the cost of each answer of this arm",
    "collector.port": "port to listen on; 0 picks a free one",
    "collector.workers": "serving processes",
    "collector.connect_timeout_s": "to open a connection to a provider",
    "collector.fsync_interval_s": "a power loss loses at most this much of the log",
    "collector.shadow_concurrency": "treatment copies in flight at once",
    "collector.client_token_env": "environment variable that holds the token clients send",
    "judge.base_url": "overrides the judge file",
    "judge.api_key_env": "overrides the judge file",
    "judge.concurrency": "calls in flight at once",
    "judge.requests_per_minute": "limit, followed together with the provider's headers",
    "judge.input_tokens_per_minute": "limit, followed together with the provider's headers",
    "judge.output_tokens_per_minute": "limit, followed together with the provider's headers",
    "data": "the store of several machines on object storage, such as `s3://bucket/prefix`, also gs:// and az:// "
    "(`pip install 'evalpipe[s3]'`); left out: the folder data/ beside the file",
    "decision.confidence_level": "of every interval and of the decision",
    "canary.stages": "percentage, duration_hours and auto_advance (default false) of each stage, rising",
    "canary.guardrails": "limits: `error_rate`, `timeout_rate`, `refusal_rate`, `truncation_rate`, `pNN_latency_ms`, "
    "`pNN_ttft_ms`, `cost_per_request_usd`, `win_rate` (a minimum)",
    "canary.min_requests": "treatment answers of a stage before it may advance",
    "canary.evaluate_every_s": "seconds between two evaluations; a rollback comes within one",
    "metrics.NAME.sql": "one expression over an exchange's row",
    "metrics.NAME.direction": "which way is better",
    "metrics.NAME.unit": "shown behind the values",
    "metrics.NAME.label": "shown in place of the name",
    "sources.NAME.map": "where things are: `prompt=question, text=answer, user=uid, time=ts`, or a table of the same",
    "prices.NAME.input": "input tokens",
    "prices.NAME.output": "output tokens",
    "prices.NAME.audio_input": "left out: answers with audio have no cost",
    "prices.NAME.audio_output": "left out: answers with audio have no cost",
    "prices.NAME.image_output": "left out: answers with images in them have no cost",
    "prices.NAME.file_search_per_1000": "left out: the documented fee",
    "prices.NAME.code_interpreter_per_1000": "left out: the documented fee",
}
"""meanings of keys that have no comment in the template"""


def _meaning(where: tuple[str, ...], meanings: dict[str, str]) -> str:
    """What a key means. Raises where nobody wrote it: a key without a meaning is a fault of the template."""
    places = [".".join(where)]
    if where[0] == "arms":
        places += [f"arms.treatment.{where[-1]}", f"arms.{where[-1]}"]
    for place in places:
        if text := meanings.get(place) or WITHOUT_COMMENT.get(place):
            return text
    raise SystemExit(f"docs/generate.py: {'.'.join(where)} has no comment in the template of evalpipe.toml: add one")


def _template_comments() -> dict[str, str]:
    """`section.key` → the comment behind it in the template (with the lines that go on), `[section]` → its own."""
    template = next(PACKAGE.rglob("evalpipe.toml.template")).read_text("utf-8")
    comments: dict[str, str] = {}
    section, last = "", None
    for line in template.splitlines():
        head = re.match(r"(?:# )?\[([a-z_.\"-]+[a-z\"])\]\s*(?:#\s*(.*))?$", line)
        key = re.match(r"(?:# )?([a-z_0-9]+) = (.*)$", line)
        more = re.match(r"#\s{3,}(?:#\s*)?(.*)$", line)
        if head:
            section = _canonical(head[1])
            last = f"[{section}]"
            if head[2]:
                comments[last] = head[2]
        elif key:
            value, _, comment = _split_comment(key[2])
            last = f"{section}.{key[1]}"
            if comment:
                comments[last] = comment
            elif not value.startswith(("[", "{")):
                last = None
        elif more and last is not None and not more[1].startswith("{"):
            comments[last] = f"{comments.get(last, '')} {more[1]}".strip()
        else:
            last = None
    return comments


def _canonical(section: str) -> str:
    named = {"arms.control": "arms.control", "arms.treatment": "arms.treatment"}
    if section in named:
        return section
    return re.sub(r"^(decision\.metrics|metrics|prices|sources)\..*$", r"\1.NAME", section)


def _split_comment(text: str) -> tuple[str, str, str]:
    """A TOML value and the comment behind it; a `#` inside quotes is none."""
    quoted = False
    for place, letter in enumerate(text):
        quoted ^= letter == '"'
        if letter == "#" and not quoted:
            return text[:place].strip(), "#", text[place + 1 :].strip()
    return text.strip(), "", ""


def _table_of(field: FieldInfo) -> tuple[type[BaseModel] | None, str]:
    """The section a key holds, and whether it is one of many ("dict", "list")."""
    annotation = field.annotation
    origin = typing.get_origin(annotation)
    for one in (annotation, *typing.get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            many = {dict: "dict", tuple: "list", list: "list"}.get(typing.cast(Any, origin), "")
            return (one, many) if many != "list" else (None, "list")
    return None, ""


def _type(field: FieldInfo) -> str:
    words = _words(field.annotation)
    bounds = [*field.metadata]
    for part in typing.get_args(field.annotation):
        bounds += getattr(part, "__metadata__", ())
    limits = "".join(_bound(one) for one in _flat(bounds))
    return words + limits


def _flat(bounds: list[Any]) -> Iterator[Any]:
    for one in bounds:
        yield from one.metadata if isinstance(one, FieldInfo) else (one,)


def _bound(one: Any) -> str:
    match one:
        case Ge():
            return f", ≥ {one.ge}"
        case Gt():
            return f", > {one.gt}"
        case Le():
            return f", ≤ {one.le}"
        case Lt():
            return f", < {one.lt}"
    return ""


def _words(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return " | ".join(f'`"{one}"`' for one in arguments)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_words(one) for one in arguments if one is not type(None))
    if origin is tuple:
        return f"list of {_words(arguments[0])}s"
    if origin is dict:
        return f"table of {_words(arguments[1])}s"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"Margin": 'number or `"10%"`', "StageConfig": "stage"}.get(annotation.__name__, "table")
    return {
        str: "string",
        int: "whole number",
        float: "number",
        bool: "`true` | `false`",
        Any: "value",
    }.get(annotation, getattr(annotation, "__name__", "value"))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return _toml(field.default)


def _toml(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return ", ".join(f"{stage.percentage:g} %" for stage in typing.cast(Any, value))
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, int | float):
        return f"`{value:g}`" if value < 1e5 else f"`{int(value)}`"
    if isinstance(value, tuple | list):
        return "`[" + ", ".join(f'"{one}"' for one in value) + "]`"
    if isinstance(value, dict):
        return "`{" + ", ".join(f"{key} = {one:g}" for key, one in value.items()) + "}`" if value else "`{}`"
    return f"`{value}`"


# ---------------------------------------------------------------------------------------------------- error messages

SHOWN = {
    "ConfigError": (2, "Wrong usage or configuration"),
    "NoDataError": (1, "Nothing was logged yet"),
    "DataError": (1, "The log or the store"),
    "WorkspaceBusyError": (1, "Another process is at work"),
    "BudgetError": (1, "Spending caps"),
    "UpstreamError": (1, "Providers"),
    "NoRoomError": (1, "No room on the disk"),
    "EvalpipeError": (1, "Other failures"),
}
"""class of the error → exit code, heading"""


def errors_page() -> str:
    """Every message that the source raises with a literal text, by kind. `…` stands for a value."""
    found: dict[str, set[str]] = {name: set() for name in SHOWN}
    reasons: set[str] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call) or not node.exc.args:
                continue
            name = getattr(node.exc.func, "id", getattr(node.exc.func, "attr", ""))
            text = _text(node.exc.args[0])
            if name == "NotShadowableError" and text:
                reasons.add(text)
            elif name in SHOWN and re.search("[a-z]{3}", text):
                found[name].add(" ".join(text.split()))
    parts = [
        NOTE,
        "# Error messages",
        "Every mistake is one line on stderr that begins with `evalpipe: `: what is wrong, the value, and what to do. These are "
        "the messages with a fixed text; `…` stands for a value. What the most frequent ones mean, and what helps, is in "
        "[Troubleshooting](../troubleshooting.md). Mistakes of `evalpipe.toml` are composed from the key, the value and "
        "what is allowed, and are not listed here.",
    ]
    for name, (code, heading) in SHOWN.items():
        if found[name]:
            rows = "\n".join(f"- {_code(text)}" for text in sorted(found[name], key=str.lower))
            parts += [f"## {heading} (exit code {code})", rows]
    return "\n\n".join(parts) + "\n"


def _text(node: ast.expr) -> str:
    """The literal text of an expression; values that are put in become `…`."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text(one) for one in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return "…"


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    space = " " if fence == "``" else ""
    return f"{fence}{space}{text}{space}{fence}"


# ------------------------------------------------------------------------------------------------------- the notebook


def notebook_page() -> str:
    """docs/examples/report.ipynb as it was executed: its texts, its code and the outputs stored in it."""
    document = json.loads((FOLDER / "examples/report.ipynb").read_text("utf-8"))
    parts = ["<!-- Written by docs/generate.py from report.ipynb. Do not edit: run `make docs-reference`. -->"]
    for cell in document["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"<!-- skip: tests/test_examples.py runs the notebook -->\n```python\n{source}\n```")
        for output in cell["outputs"]:
            table = re.search(r"<table.*</table>", "".join(output["data"].get("text/html", "")), re.DOTALL)
            if table is not None:
                parts.append(re.sub(r"<(table|tr)[^>]*>", r"<\1>", table[0]))
            else:
                parts.append(f"```text\n{''.join(output['data']['text/plain'])}\n```")
    parts.append("As a file: [report.ipynb](report.ipynb).")
    return "\n\n".join(parts) + "\n"


PAGES = {
    "reference/cli.md": cli_page,
    "reference/configuration.md": configuration_page,
    "reference/errors.md": errors_page,
    "examples/report.md": notebook_page,
}


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` compare them. Returns the exit code."""
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, page()
        if "--check" not in arguments:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != text:
            stale.append(f"docs/{name}")
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run python docs/generate.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
