"""The HTML of the server: every text is escaped, and what a text hides is shown."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from importlib import resources
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
