"""The HTML of the server: every text is escaped, and what a text hides is shown. The files of a reports folder, nothing else of
the machine, with the policy each page carries."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import jinja2
from starlette.responses import HTMLResponse, Response

from evalpipe.report.sanitize import escape_invisible
from evalpipe.report.terms import RECOMMENDATIONS
from evalpipe.serve.live import live_texts
from evalpipe.text import format_count, format_counted, format_instant, format_usd, sentence_case

STATIC: Final = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}


def page(template: str, *, status: int = 200, **values: Any) -> Response:
    """A page of this server. `values`: of its template."""
    return HTMLResponse(environment("evalpipe.serve").get_template(template).render(**values), status_code=status)


@cache
def environment(package: str) -> jinja2.Environment:
    """The templates of a package, with the filters of these pages. Whatever is put in is escaped, wherever it comes from."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        finalize=lambda value: escape_invisible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["when"] = lambda at: format_instant(datetime.fromtimestamp(at, UTC).isoformat())
    made.filters |= {
        "instant": format_instant,
        "count": format_count,
        "counted": format_counted,
        "usd": format_usd,
        "sentence": sentence_case,
        "live": live_texts,
        "decision_word": lambda recommendation: RECOMMENDATIONS.get(recommendation, recommendation),
    }
    return made


@cache
def static_file(name: str) -> bytes:
    """A style or script, one of `STATIC`."""
    return resources.files("evalpipe.serve").joinpath("static", name).read_bytes()


_PART = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*")
"""of a path: no hidden file, no way up, nothing encoded"""
_KINDS: Final = {".html": "text/html; charset=utf-8", ".json": "application/json", ".csv": "text/csv; charset=utf-8"}
_META = re.compile(rb'<meta http-equiv="Content-Security-Policy" content="([^"<>]*)">')
_HEAD_BYTES: Final = 4096
# A page of its own origin can neither read nor press anything of this server, whatever its texts hold.
_SANDBOX: Final = (
    "frame-ancestors 'none'; sandbox allow-scripts allow-modals allow-downloads allow-popups "
    "allow-popups-to-escape-sandbox"
)
_NOTHING: Final = "default-src 'none'; base-uri 'none'; form-action 'none'"


def report_file(folder: Path, asked: str) -> Path | None:
    """The file of a reports folder that is asked for; None where there is none that may be shown."""
    parts = asked.split("/")
    if parts and parts[-1] == "":
        parts[-1] = "index.html"
    if not all(_PART.fullmatch(part) for part in parts) or Path(parts[-1]).suffix not in _KINDS:
        return None
    try:
        root = folder.resolve()
        found = root.joinpath(*parts).resolve()
        # A link that leads out of the folder is not followed.
        return found if found.is_file() and found.is_relative_to(root) and found.suffix in _KINDS else None
    except (OSError, ValueError):
        return None


def report_response(path: Path) -> Response:
    """The file under the policy that it contains, and in a sandbox. Raises OSError."""
    content = path.read_bytes()
    policy = _NOTHING
    if path.suffix == ".html":
        found = _META.search(content[:_HEAD_BYTES])
        if found is not None:
            policy = " ".join(html.unescape(found[1].decode("latin-1")).split())
    return Response(
        content,
        media_type=None,
        headers={"content-type": _KINDS[path.suffix], "content-security-policy": f"{policy}; {_SANDBOX}"},
    )
