"""Keys and tokens in texts: which values are secrets, the forms they turn up in, and texts without them. No I/O.

A provider that refuses a key likes to repeat it, in clear, in a URL, or as in a Basic header; a parameter of a
request is a key where its name implies one. A known secret is found by its exact value, whatever its form.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit

MIN_LENGTH = 8
"""characters; a shorter value ("none", "EMPTY", "x") is a word of the texts it would be taken out of"""
MASK = "[key]"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NAMED_SO = frozenset(
    re.findall(
        r"\w+",
        "key apikey token secret password passwd passphrase pwd credential credentials auth authorization bearer cookie "
        "signature sig sas jwt",
    )
)
_NO_CREDENTIALS = frozenset(
    ["prompt_cache_key", "idempotency_key", "cache_key", "stop_token", "eos_token", "bos_token", "pad_token"]
)
"""parameters of requests that are named like a secret and are none"""
_SCHEME = re.compile(r"(?:Bearer|Basic|Token|ApiKey|Key)[ \t]+", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/?#\s@]*@")
_QUERY_VALUE = re.compile(r"([?&;]([^=&;\s#]+)=)([^&;\s#'\"]*)")
_QUERY_NAME = re.compile(r"key|token|secret|signature|password|passwd|credential|sig|auth", re.IGNORECASE)
_ENCODED_BEFORE = re.compile(r"[A-Za-z0-9+/_-]+\Z")
_ENCODED_AFTER = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_MAX_AROUND = 512
"""characters of base64 around a secret that go with it: a user's name, padding"""
_JSON_IN_JSON = 3
"""a text of JSON (a tool's arguments) in an error's message in the JSON of an answer"""
_MAX_DEPTH = 50


@lru_cache(4096)
def is_credential_name(name: str) -> bool:
    """Whether a parameter, header or query field of this name holds a secret: "api_key", "X-Auth-Token", "apiKey"."""
    if name.lower().replace("-", "_") in _NO_CREDENTIALS:
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    return any(word in _NAMED_SO for word in words)


def secrets_in(value: Any, *, named: bool = False, depth: int = 0) -> Iterator[str]:
    """The secrets among parameters: every text below a name that implies one; of "Bearer X" also X, of JSON also its members."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from secrets_in(item, named=named or is_credential_name(str(name)), depth=depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from secrets_in(item, named=named, depth=depth + 1)
    elif isinstance(value, str):
        if named:
            yield from credential_parts(value)
            if value.lstrip().startswith("{"):
                try:
                    document = json.loads(value)
                except (ValueError, RecursionError):
                    return
                yield from secrets_in(document, depth=depth + 1)
        elif "://" in value:
            yield from secrets_in_url(value)


def credential_parts(value: str) -> Iterator[str]:
    """The secret in a header's value: all of it, what follows a scheme, and of Basic what it holds."""
    value = value.strip()
    if not value:
        return
    yield value
    scheme = _SCHEME.match(value)
    if scheme is None:
        return
    rest = value[scheme.end() :].strip()
    yield rest
    if value[:5].lower() == "basic":
        try:
            user, _, password = b64decode(rest, validate=True).decode().partition(":")
        except ValueError:
            return
        yield password
        if len(user) >= 20:  # some APIs take the key as the user, and no password
            yield user


def secrets_in_url(url: str) -> Iterator[str]:
    """The password of a URL, and the values of its query that are named like secrets; as written and decoded."""
    try:
        password = urlsplit(url).password
    except ValueError:
        password = None
    found = [] if password is None else [password]
    found += [value for _, name, value in _QUERY_VALUE.findall(url) if _QUERY_NAME.search(unquote(name))]
    for value in found:
        yield value
        yield unquote(value)


def shown_url(url: str) -> str:
    """A URL for people: without user and password, and without the values of its query that are named like secrets."""
    shown = _USERINFO.sub("", url)
    return _QUERY_VALUE.sub(
        lambda found: found[1] + "redacted" if _QUERY_NAME.search(unquote(found[2])) else found[0], shown
    )


def without_secrets(value: Any, *, named: bool = False, depth: int = 0) -> Any:
    """Parameters for people: the texts below a name that implies a secret are masked."""
    if depth > _MAX_DEPTH:
        return MASK
    if isinstance(value, Mapping):
        return {
            name: without_secrets(item, named=named or is_credential_name(str(name)), depth=depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item, named=named, depth=depth + 1) for item in value]
    if isinstance(value, str):
        return MASK if named and value else shown_url(value) if "://" in value else value
    return value


def known_secrets(values: Iterable[str]) -> tuple[str, ...]:
    """Each once, the longest first; without those too short to be distinguished from words."""
    kept = {value for value in values if len(value) >= MIN_LENGTH}
    return tuple(sorted(kept, key=lambda value: (-len(value), value)))


def spellings(secret: str) -> list[str]:
    """The forms in which a secret occurs in texts, each once: plain, in JSON, in a URL, in HTML."""
    forms = level = [secret]
    for _ in range(_JSON_IN_JSON):
        level = [json.dumps(form, ensure_ascii=pure)[1:-1] for form in level for pure in (True, False)]
        forms = list(dict.fromkeys([*forms, *level]))
    forms.append(forms[1 if len(forms) > 1 else 0].replace("/", "\\/"))
    html = secret.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for safe in ("", "/", "/:", "-_.~!*'()"):
        encoded = quote(secret, safe=safe)
        forms += [encoded, re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), encoded)]
    forms += [
        html,
        html.replace('"', "&#34;").replace("'", "&#39;"),
        html.replace('"', "&quot;").replace("'", "&#x27;"),
    ]
    return list(dict.fromkeys(forms))


def base64_cores(secret: str) -> list[str]:
    """The base64 forms of a secret at every offset in what is encoded ("user:" before it): the characters that only
    the secret decides, for the three places a byte can have, in the standard and in the URL-safe alphabet."""
    data = secret.encode()
    cores: list[str] = []
    for offset in range(3):
        first = (0, 2, 3)[offset]
        encoded = b64encode(b"\0" * offset + data).decode()[first : 8 * (offset + len(data)) // 6]
        cores += [encoded, encoded.replace("+", "-").replace("/", "_")]
    return list(dict.fromkeys(cores))


class Finder:
    """Finds any of some secrets in any of their forms: (start, end) spans, in order; in base64 all of the encoded text."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = known_secrets(secrets)
        self._plain = _any_of(form for secret in known for form in spellings(secret))
        self._encoded = _any_of(core for secret in known for core in base64_cores(secret))

    def __call__(self, text: str) -> Iterator[tuple[int, int]]:
        if self._plain is None or self._encoded is None:
            return
        for match in self._plain.finditer(text):
            yield match.span()
        for match in self._encoded.finditer(text):
            start, end = match.span()
            before = _ENCODED_BEFORE.search(text[max(0, start - _MAX_AROUND) : start])
            after = _ENCODED_AFTER.match(text, end, end + _MAX_AROUND)
            yield start - (len(before[0]) if before else 0), after.end() if after else end


def _any_of(forms: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted(dict.fromkeys(forms), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def mask_with(find: Finder, text: str) -> str:
    """The text with what is found replaced."""
    kept: list[str] = []
    at = 0
    for start, end in sorted(find(text)):
        if end <= at:
            continue
        if start >= at:
            kept += [text[at:start], MASK]
        at = end
    return "".join([*kept, text[at:]])


def mask(text: str, secrets: Iterable[str]) -> str:
    """The text with every form of the secrets replaced."""
    return mask_with(Finder(secrets), text)


KEY_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, and compatible providers
    r"|(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|hf_[A-Za-z0-9]{20,}|gsk_[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}|(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"  # a JSON web token
    r")"
)
"""what the keys of well-known providers look like"""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def is_variable_name(text: str) -> bool:
    """Whether a text can name an environment variable, and is not a key that was written where a name belongs."""
    if _VARIABLE.fullmatch(text) is None or KEY_SHAPES.search(text):
        return False
    digits = sum(character.isdigit() for character in text)
    mixed = text != text.upper() and text != text.lower()
    return not (len(text) >= 20 and digits >= 4 and (mixed or "_" not in text))
