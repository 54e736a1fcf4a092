"""One JSON document from its bytes, and the form in which a rejected one is stored."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec

MAX_WHOLE_BYTES = 512 * 1024 * 1024
"""A file above this is read line by line in any case: one JSON document of that size does not fit in memory."""


def parse_document(data: bytes) -> Any:
    """The JSON value of `data`. Lone surrogates are taken as they are. Raises ValueError with the reason."""
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):  # msgspec is fast and strict; what it refuses gets a second reading
        pass
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def rejected_form(data: bytes) -> dict[str, str]:
    """A broken line as JSON can hold it: text where it is UTF-8, else base64."""
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}
