"""What a file's name means: a path on this machine, or a URI, which only some readers understand.

`pathlib` makes a relative path of a URI without a word: of `s3://bucket/x` the file `x` in the
directories `s3:` and `bucket`. So nothing that a user names goes to `pathlib` before it was here.
A line belongs here when it is about the name alone, whatever the file holds.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rerank_async._errors import InvalidRequestError

__all__ = ["STDIN", "local_path", "scheme_of"]

STDIN = "-"

# Two letters at least: `C:/data` is a drive. One slash is enough, because of two `pathlib` has left
# one where a URI went through it.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def scheme_of(name: str | os.PathLike[str]) -> str | None:
    """The scheme of a URI in lower case, such as "s3"; None of what is a path."""
    found = _SCHEME.match(os.fspath(name))
    return None if found is None else found[1].lower()


def local_path(what: str, name: str | os.PathLike[str], *, instead: str = "") -> Path:
    """The path that a name means here; a `file:` URI of this machine is the path in it.

    Args:
        what: the argument or option, for the message.
        name: the file's name, as the user wrote it.
        instead: what to do where a URI is meant, for the end of the message.

    Raises:
        InvalidRequestError: it is a URI of something else than a file of this machine, or no name.
    """
    if not isinstance(name, (str, os.PathLike)) or not isinstance(os.fspath(name), str):
        raise InvalidRequestError(f"{what} must be the name of a file, not {name!r}")
    text = os.fspath(name)
    if not text:
        raise InvalidRequestError(f"{what} is empty: give the name of a file")
    scheme = scheme_of(text)
    if scheme is None:
        return Path(text)
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc in ("", "localhost") and not (parts.query or parts.fragment):
            path = unquote(parts.path)
            # On Windows a drive stands after the first slash.
            return Path(path[1:] if re.match(r"/[A-Za-z]:", path) else path)
        raise InvalidRequestError(
            f"{what}: {text} does not name a file of this machine: a URI of one is "
            "file:///directory/file, where ? is written as %3F and # as %23"
        )
    raise InvalidRequestError(
        f"{what}: {text} is a URI, and only a file of this machine can stand here: give its path"
        + (f"; {instead}" if instead else "")
    )
