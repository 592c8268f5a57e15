"""What printers may see: values that keep a key, a body or a text to themselves, and errors without
the frames that hold them.

Tracebacks with locals, rich, IPython, devtools, pprint and error trackers print whatever they
reach; serialisers walk the fields of structs, of attrs classes and of mappings.
A line belongs here when it keeps something from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, SupportsIndex

from rerank_async._errors import RerankError

__all__ = [
    "FramesHidden",
    "Headers",
    "Private",
    "Sealed",
    "Secret",
    "SecretBytes",
    "excerpt",
    "hide_frames",
    "shown",
]

_MASK = "'[API key]'"
# The most characters of a wrong argument that a message repeats.
_SHOWN = 40
# The most characters of what a server says that a message repeats.
_EXCERPT = 200
# Control characters, line ends, and what is invisible or turns the direction of writing.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+"
)
_NUMBER = re.compile(r"[-+\d.,_eE]{0,40}")
# Below a call, these are about how it was made: whoever called has no use for their frames.
_INNER = ("rerank_async", "aiohttp", "asyncio", "tenacity")


class Secret(str):
    """Text that representations, and with them tracebacks and logs of values, do not show.

    Its parts are masked too: printers cut what is long before they show it.
    """

    __slots__ = ()

    @classmethod
    def of(cls, text: object) -> Secret:
        """Mask `text`; a TypeError that says its type where it is none."""
        if isinstance(text, str):
            return cls(text)
        kind = type(text).__name__
        # This frame must not show it either.
        del text
        raise TypeError(kind)

    def __repr__(self) -> str:
        return _MASK

    def __getitem__(self, place: SupportsIndex | slice) -> Secret:
        return Secret(str.__getitem__(self, place))

    def __iter__(self) -> Iterator[str]:
        return map(Secret, str.__iter__(self))

    def splitlines(self, keepends: bool = False) -> list[str]:
        """Itself: no line of it is shown."""
        return [self]

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key is not pickled")


class SecretBytes(bytes):
    """Bytes that representations do not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _MASK

    def __getitem__(self, place: Any) -> Any:
        found = bytes.__getitem__(self, place)
        return SecretBytes(found) if isinstance(found, bytes) else 0

    def splitlines(self, keepends: bool = False) -> list[bytes]:
        """Itself: no line of it is shown."""
        return [self]

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key is not pickled")


class Sealed:
    """Holds a key where objects keep it: serialisers that take a `Secret` for text do not find it.

    Args:
        key: the key.
    """

    __slots__ = ("_key",)

    def __init__(self, key: Secret) -> None:
        self._key = key

    def open(self) -> Secret:
        """The key."""
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sealed) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return _MASK

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key is not pickled")


class Headers(Mapping[str, str]):
    """Headers that are looked up, and neither shown nor serialised: no dict, no struct.

    Args:
        items: the values by the headers' names, as these are to be written.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, str]) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> str:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<Headers {', '.join(self._items)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("headers may hold an API key, and are not pickled")


class Private:
    """For structs that hold texts or bodies: they show their names, and no field.

    What rich would walk for structs is turned off; then rich, too, asks for `repr`.
    It stands before `Struct` among the bases.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lstrip('_')}>"

    def __rich_repr__(self) -> Any:
        return None


def shown(value: object) -> str:
    """A wrong argument as a message repeats it: by its kind alone where it may be a text of a call.

    Whoever takes one argument for another passes documents where a number is wanted.
    """
    kind = type(value).__name__
    if value is None or isinstance(value, (bool, int, float)):
        written = repr(value)
        return written if len(written) <= _SHOWN else f"{written[:_SHOWN]}…"
    if type(value) is str and _NUMBER.fullmatch(value):
        return repr(value)
    return f"a value of type {kind}"


def excerpt(body: bytes) -> str:
    """The start of a body in at most 200 characters, safe to print on one line."""
    text = body[: 4 * _EXCERPT].decode("utf-8", errors="replace").removeprefix("\ufeff")
    text = _UNPRINTABLE.sub(" ", text).strip()
    if not text:
        return "an empty body" if not body else "a body without text"
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


class FramesHidden:
    """`with FramesHidden():` does what `hide_frames` does for whatever is raised within."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            hide_frames(error)


def hide_frames(error: BaseException) -> None:
    """Take the frames of a call out of an error's traceback: their locals are texts and bodies.

    What fails in code that was handed to us, such as an iterable of documents, keeps its own
    frames.
    What fails in our code and is no error of ours is a mistake in it, and keeps all of them.
    So do `KeyboardInterrupt` and `SystemExit`; a cancellation does not.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return
    may_be_mistake = isinstance(error, Exception) and not isinstance(error, RerankError)
    if may_be_mistake and _is_inner(_last(error.__traceback__)):
        return
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        if link.__traceback__ is not None:
            link.__traceback__ = _outside(link.__traceback__)
        waiting += (link.__cause__, link.__context__)


def _outside(traceback: TracebackType | None) -> TracebackType | None:
    kept: list[TracebackType] = []
    while traceback is not None:
        if not _is_inner(traceback):
            kept.append(traceback)
        traceback = traceback.tb_next
    found: TracebackType | None = None
    for entry in reversed(kept):
        found = TracebackType(found, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return found


def _last(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _is_inner(traceback: TracebackType | None) -> bool:
    if traceback is None:
        return False
    name = traceback.tb_frame.f_globals.get("__name__", "")
    return isinstance(name, str) and name.partition(".")[0] in _INNER
