"""What the command line's parser refuses (an unknown option, a value of the wrong kind), as one line like every other error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from evalpipe.text import mistake_in_words


def usage_line(error: Any, words: Sequence[str]) -> str | None:
    """The one line of a parser's error: what is wrong, the value, the nearest name, and the help that lists the names.

    Args:
        error: what the parser raised; its classes moved between typer's releases, so it is known by what it carries.
        words: the command line's.

    Returns:
        None where the error is no usage error, or is the help itself (a group of commands that was named without one).
    """
    kind = type(error).__name__
    if not hasattr(error, "format_message") or kind == "NoArgsIsHelpError":
        return None
    context = getattr(error, "ctx", None)
    named = f"evalpipe {words[0]}" if words and words[0][:1] != "-" else "evalpipe"
    called = getattr(context, "command_path", named)
    text = error.format_message().strip().removesuffix(".")
    if kind == "NoSuchOption":
        known = (
            [] if context is None else [name for one in context.command.params for name in one.opts if name[:1] == "-"]
        )
        near = difflib.get_close_matches(error.option_name, known, 1)
        text = f"{called.removeprefix('evalpipe ')} has no option {error.option_name}"
        text += f"; did you mean {near[0]}?" if near else ";"
        return f"{text} `{called} --help` lists those there are"
    name, value = _value(getattr(getattr(error, "param", None), "opts", ()), words)
    if value is not None:
        reason = mistake_in_words(error.message.strip().removesuffix("."))
        text = f"{name} {value!r}: {reason.replace(f'{value!r} is not one of', 'must be one of')}"
    text = text.replace("Got unexpected extra argument(s) (", "unexpected argument (").replace(
        "requires an argument", "needs a value"
    )
    text = re.sub(r"\. Did you mean '([^']*)'\?$", r"; did you mean '\1'", text)
    return f"{text[:1].lower()}{text[1:]}{'?' if 'did you mean' in text else ';'} see `{called} --help`"


def _value(names: Sequence[str], words: Sequence[str]) -> tuple[str, str | None]:
    """The name that an option was given by, and its value; None where the words hold none."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            return name, value if equals else next(iter(words[place + 1 :]), None)
    return "", None
