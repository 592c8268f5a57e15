"""Where requests go and with which key: `base_url`, `api_key` and the environment behind them.

A line belongs here when it decides what may be sent where; it is all decided when a session is
made, if not before, and nothing that comes later can change it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from typing import NoReturn
from urllib.parse import urlsplit

from rerank_async._errors import InvalidRequestError
from rerank_async._private import Headers, Secret, SecretBytes
from rerank_async.dialects import Dialect

__all__ = [
    "DEFAULT_BASE_URL",
    "Endpoint",
    "Secret",
    "check_destination",
    "default_base_url",
    "default_model",
    "resolve_endpoint",
]

DEFAULT_BASE_URL = "https://api.3xcoder.com/v1"

# Names, and addresses of either kind: what urlsplit lets through and a browser reads otherwise
# (a backslash, say) is no host.
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+(%[a-z0-9._-]+)?")
_PLAIN = re.compile(r"[\x21-\x7e]+")
# A key with fewer characters may be part of any word that a server says.
_SHORT = 8
# A word of letters alone is no key if it has no more of them than this.
_LONGEST_NAME = 16
_KEY = re.compile(r"[\x21-\x7e]+")


class Endpoint:
    """A server, and what every request to it carries.

    It is no struct: there are no fields that a serialiser could walk to the key.
    """

    __slots__ = ("_base_url", "_headers", "_key", "_spellings")

    def __init__(self, base_url: str, headers: Mapping[str, str], key: Secret | None) -> None:
        self._base_url = base_url
        self._headers = Headers(headers)
        self._key = key
        # How a body may spell the key.
        self._spellings = () if key is None else _spellings_of(key)

    @property
    def base_url(self) -> str:
        """Without a slash at its end."""
        return self._base_url

    @property
    def headers(self) -> Mapping[str, str]:
        """Of every request."""
        return self._headers

    def __repr__(self) -> str:
        return f"<Endpoint {self.base_url}>"

    def redact(self, body: bytes) -> bytes:
        """`body` without the API key, which some servers quote in what they answer."""
        for spelling in self._spellings:
            if len(spelling) < _SHORT:
                body = _alone(spelling).sub(b"[API key]", body)
            else:
                body = body.replace(spelling, b"[API key]")
        return body

    def is_quoted(self, body: bytes) -> bool:
        """Whether `body` holds the API key."""
        return any(
            body.find(spelling) >= 0
            and (len(spelling) >= _SHORT or _alone(spelling).search(body) is not None)
            for spelling in self._spellings
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Endpoint holds an API key, and is not pickled")

    def redact_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """A copy of `headers`, names in lower case, without the API key."""
        key = self._key
        return {
            name.lower(): value if key is None else value.replace(key, "[API key]")
            for name, value in headers.items()
        }


def default_base_url() -> str:
    """`$RERANK_BASE_URL`, or the 3xCoder endpoint."""
    return os.environ.get("RERANK_BASE_URL") or DEFAULT_BASE_URL


def default_model() -> str | None:
    """`$RERANK_MODEL`, or None."""
    return os.environ.get("RERANK_MODEL") or None


def resolve_endpoint(
    base_url: str | None,
    api_key: str | None,
    *,
    dialect: Dialect,
    user_agent: str,
    allow_insecure_http: bool,
) -> Endpoint:
    """Check the URL and the key, or find them in the environment.

    Args:
        base_url: None means `$RERANK_BASE_URL`, then the 3xCoder endpoint.
        api_key: None means `$RERANK_API_KEY`, then no key; for the 3xCoder endpoint
            `$OPENAI_API_KEY` as well, as its documentation has it, and there no key is an error.
        dialect: the dialect, which says how the server takes the key, and where requests go.
        user_agent: what to call ourselves.
        allow_insecure_http: whether a key may cross a network unencrypted.

    Raises:
        InvalidRequestError: naming the argument; a key is never part of the message.
    """
    url = _checked_url(default_base_url() if base_url is None else base_url, dialect.path)
    key = _key_from("RERANK_API_KEY") if api_key is None else api_key
    if key is None and url == DEFAULT_BASE_URL:
        key = _key_from("OPENAI_API_KEY")
        if key is None:
            raise InvalidRequestError(
                f"api_key: {DEFAULT_BASE_URL} asks for one: pass api_key=, or set "
                "RERANK_API_KEY; for another server pass base_url= or set RERANK_BASE_URL"
            )
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        # Unpacking an answer takes a quarter of the time of reading and checking it
        # (`benchmarks/pieces.py`), and how much comes out of it is not known before.
        "Accept-Encoding": "identity",
        "User-Agent": user_agent,
    }
    if key is None:
        return Endpoint(url, {**headers, **dialect.headers(None)}, None)
    _check_key(key)
    _check_encryption(url, allow_insecure_http)
    # Each is masked before it has a name here: a trace of this frame would show it.
    masked = zip(
        list(dialect.headers(key)), map(Secret, dialect.headers(key).values()), strict=True
    )
    for name, value in masked:
        headers[name] = value if key in value else str.__str__(value)
    return Endpoint(url, headers, Secret(key))


def check_destination(
    base_url: str | None, api_key: str | None, *, dialect: Dialect, allow_insecure_http: bool
) -> None:
    """Refuse what `resolve_endpoint` would refuse in every environment; None is no mistake here.

    Raises:
        InvalidRequestError: naming the argument; a key is never part of the message.
    """
    url = None if base_url is None else _checked_url(base_url, dialect.path)
    if api_key is not None:
        _check_key(api_key)
        if url is not None:
            _check_encryption(url, allow_insecure_http)


def _alone(spelling: bytes) -> re.Pattern[bytes]:
    """A short key where it stands by itself: within words and numbers it occurs by chance."""
    return re.compile(rb"(?<![^\s\"'`=])" + re.escape(spelling) + rb"(?![^\s\"'`.])")


def _spellings_of(key: Secret) -> tuple[SecretBytes, ...]:
    """As it is, as JSON must have it, and as JSON may; each once."""
    escaped = Secret(json.dumps(key)[1:-1])
    return tuple(
        {SecretBytes(text.encode()) for text in (key, escaped, Secret(escaped.replace("/", "\\/")))}
    )


def _check_key(key: str) -> None:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidRequestError(
            "api_key must be printable ASCII without spaces or line ends, and not empty: was a "
            "line end copied along with it?"
        )


def _check_encryption(url: str, allow_insecure_http: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme == "http" and not allow_insecure_http and not _is_loopback(parts.hostname):
        raise InvalidRequestError(
            f"base_url: {url} would carry the API key unencrypted: use https, or pass "
            "allow_insecure_http=True for a network that you trust"
        )


def _key_from(variable: str) -> Secret | None:
    value = os.environ.get(variable)
    return Secret(value) if value else None


def _checked_url(url: str, path: str) -> str:
    if not isinstance(url, str):
        raise InvalidRequestError(f"base_url must be a string, not {type(url).__name__}")
    if not url:
        raise InvalidRequestError("base_url must not be empty: leave it out for the default")
    if "@" in url:
        # Not shown: it holds a password.
        raise InvalidRequestError("base_url must not hold a user name or password: use api_key")
    if not _PLAIN.fullmatch(url) or "?" in url or "#" in url:
        raise InvalidRequestError(
            "base_url must be plain ASCII without spaces, '?' and '#', and is not: "
            f"{re.split('[?#]', url)[0]!r}"
        )
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
    except ValueError as error:
        raise InvalidRequestError(f"base_url is not a URL: {url!r}: {error}") from None
    has_host = _HOST.fullmatch(parts.hostname or "") and has_port
    if not has_host or parts.scheme not in ("http", "https"):
        is_name = url.isalpha() and len(url) <= _LONGEST_NAME
        if not is_name and not any(character in url for character in "/.:"):
            # A key stands where the URL belongs more often than such a name does.
            raise InvalidRequestError(
                "base_url must be like https://host/v1, and is a single word, which is not shown: "
                "it may be a key"
            )
        raise InvalidRequestError(
            f"base_url must be like https://host/v1, not {url!r}: it lacks http(s):// or a host"
        )
    trimmed = url.rstrip("/")
    if trimmed.endswith(path):
        raise InvalidRequestError(
            f"base_url ends before {path}, which is added to it: pass "
            f"{trimmed.removesuffix(path)!r}"
        )
    return trimmed


def _is_loopback(host: str | None) -> bool:
    if host is None:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
