"""What input and output formats have in common: a name, endings, the package that they need.

A line belongs here when it tells formats apart by the names of files; the tables of formats are in
`_inputs` and `_outputs`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from rerank_async.bulk._errors import InputError
from rerank_async.bulk._files import COMPRESSED, content_ending

__all__ = ["FileFormat", "endings_told", "first_endings", "listed"]


@frozen(kw_only=True)
class FileFormat:
    """How the files of one kind are named, and what they need.

    Attributes:
        name: the format's name in messages, such as "Parquet".
        endings: the endings of its files, in lower case and without dot; the first stands for all
            of them in messages.
        is_compressible: whether `.gz` or `.zst` may follow the ending.
        package: the optional package that it is read or written with; None when it needs none.
        extra: the extra of rerank-async that installs this package.
    """

    name: str
    endings: tuple[str, ...] = ()
    is_compressible: bool = True
    package: str | None = None
    extra: str | None = None

    def has_ending(self, path: Path) -> bool:
        """Whether the name of a file has an ending of this format."""
        ending = content_ending(path)
        if ending not in self.endings:
            return False
        return self.is_compressible or path.suffix.lower() == f".{ending}"

    def lacks_package(self, name: str) -> InputError:
        """The error that says which package to install for the file of that name."""
        return InputError(
            f'{name}: {self.name} needs {self.package}: pip install "rerank-async[{self.extra}]"'
        )


def listed(words: Iterable[str], conjunction: str = "or") -> str:
    """Words as a choice or a list: "a, b or c"."""
    *others, last = [*words] or [""]
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def endings_told(formats: Iterable[FileFormat]) -> str:
    """All endings as a choice: ".jsonl or .txt, perhaps with .gz or .zst behind, or .parquet"."""
    told: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for one in formats:
        # A dict, because formats may share an ending, and the order is that of the table.
        told[one.is_compressible] |= dict.fromkeys(f".{ending}" for ending in one.endings)
    choices = []
    if told[True]:
        choices.append(f"{listed(told[True])}, perhaps with {listed(COMPRESSED)} behind")
    if told[False]:
        choices.append(listed(told[False]))
    return ", or ".join(choices)


def first_endings(formats: Iterable[FileFormat], conjunction: str = "or") -> str:
    """The first ending of each format, to name the format by it: ".jsonl, .run or .parquet"."""
    endings = [f".{ending}" for one in formats for ending in one.endings[:1]]
    return listed(endings, conjunction)
