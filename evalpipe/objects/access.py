"""Access to object storage: its address, and in one line why there is none."""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import urlsplit

from evalpipe.errors import ConfigError

SCHEMES = ("s3", "gs", "az")
ENDPOINTS: Final = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""The variables that name a server of the user's own, by scheme."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
"""What the vendors take for a bucket (Azure: a container), and a little more."""
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified (?:bucket|container) does not exist", re.IGNORECASE)
_MACHINE_ROLE = re.compile(r"//(?:169\.254\.\d+\.\d+|metadata\.google\.internal|\[fd00:ec2::254\])[:/]")
"""The addresses at which a cloud's machines and pods ask for the credentials of their role."""
_KEYS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


def is_url(text: str) -> bool:
    """Whether a text is the address of object storage: s3://, gs:// or az://. A `Path` of it has lost a slash."""
    return re.match(rf"(?:{'|'.join(SCHEMES)}):/", text) is not None


def normalized_url(text: str) -> str:
    """The address with two slashes after its scheme and none at its end.

    Examples:
        >>> normalized_url("s3:/bucket/prefix/")
        's3://bucket/prefix'
    """
    scheme, _, rest = text.partition(":")
    return f"{scheme}://{rest.strip('/')}"


def check_address(url: str) -> str:
    """The address in its usual form.

    Raises:
        ConfigError: where it has no bucket, one that no vendor takes, or a prefix that means another place.
    """
    address = normalized_url(url)
    bucket, *prefix = address.partition("://")[2].split("/")
    if not is_url(address) or not bucket:
        raise ConfigError(f"data = {url!r}: an address such as s3://bucket/prefix is expected")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"data = {url!r}: {bucket!r} is no name of a bucket (lower-case letters, digits, - and .): correct the address"
        )
    if any(part in ("", ".", "..") or not part.isprintable() for part in prefix):
        raise ConfigError(
            f"data = {url!r}: the prefix {'/'.join(prefix)!r} has an empty part, '.', '..' or control characters: name it plainly"
        )
    return address


def endpoints_of(address: str) -> list[str]:
    """The servers of the user's own that the environment names for an address; none: the vendor's is asked.

    Raises:
        ConfigError: where what a variable holds is no address of a server.
    """
    found = {
        name: value for name in ENDPOINTS[address.partition(":")[0]] if (value := os.environ.get(name)) is not None
    }
    for name, value in found.items():
        if not _is_server(value):
            raise ConfigError(
                f"{name} is {value!r}: the address of a server such as http://127.0.0.1:9000 or https://minio.example.com is "
                "expected; unset it to use the vendor's own"
            )
    return list(found.values())


def _is_server(value: str) -> bool:
    try:
        parts = urlsplit(value)
        host = _HOST.fullmatch(parts.hostname or "")
        return parts.scheme in ("http", "https") and host is not None and parts.port != 0
    except ValueError:
        return False


def missing_bucket(error: BaseException, address: str) -> str | None:
    """The sentence where a request failed because there is no such bucket."""
    if _NO_BUCKET.search(str(error)) is None:
        return None
    bucket = address.partition("://")[2].partition("/")[0]
    return f"the bucket {bucket!r} does not exist: create it, or correct `data`"


def missing_credentials(error: BaseException, address: str) -> str | None:
    """The sentence where neither the environment nor the machine's role gave credentials."""
    text = str(error)
    scheme = address.partition(":")[0]
    if "Account must be specified" not in text and _MACHINE_ROLE.search(text.partition("Debug source:")[0]) is None:
        return None
    return f"no credentials: set {_KEYS[scheme]}, or give this machine a role ({reason(error)})"


_SECRET = re.compile(r"(?i)(x-amz-[a-z-]*(?:signature|credential|token)[a-z-]*|authorization|sig|signature)=?[^\s&\"]*")
_XML = re.compile(r"<\?xml.*", re.DOTALL)
_CODE = re.compile(r"<Code>([^<]*)</Code>(?:\s*<Message>([^<]*)</Message>)?")


def reason(error: BaseException) -> str:
    """Why a request failed, in one line, without the address's signature, markup and the library's debug output."""
    text, _, details = str(error).partition("Debug source:")
    document = _XML.search(text)
    if document is not None:
        code = _CODE.search(document[0])
        text = text[: document.start()] + (": ".join(part for part in code.groups() if part) if code else "")
    line = " ".join(text.split()) or type(error).__name__
    if "kind: Connect" in details:
        line += ": no connection to this server"
    return _SECRET.sub("…", line)[:300]
