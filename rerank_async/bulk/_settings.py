"""What a caller says of a job, as one value, and what it means: a source, a directory, an output.

A line belongs here when it reads an argument of the calls of this package, or refuses one.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from attrs import field, frozen

from rerank_async._errors import InvalidRequestError
from rerank_async._paths import STDIN, local_path
from rerank_async._session import RerankSession
from rerank_async.bulk._cache import ScoreCache
from rerank_async.bulk._inputs import Beside, Source, is_part, open_source
from rerank_async.bulk._manifest import Words, limit_words
from rerank_async.bulk._options import BulkOptions
from rerank_async.bulk._outputs import check_of, output_format
from rerank_async.bulk._rows import Row

__all__ = ["Assignment", "JobSettings", "Name"]

Name: TypeAlias = str | PathLike[str]

# One query's ranking is one line: by default it holds so many results.
_TOP_OF_A_CORPUS = 1000
_DOCUMENTS_PER_REQUEST = 1000
_ON_RAY = "directories of Parquet elsewhere are read and written by rerank_parquet (--ray)"


@frozen
class Assignment:
    """A job whose arguments are checked: what to read, where to write, and how.

    Attributes:
        session: the session that sends; its own time for calls does not count in a job.
        source: the rows.
        output: the file to end in.
        directory: the job's directory.
        options: the choices how the job is done.
    """

    session: RerankSession
    source: Source
    output: Path
    directory: Path
    options: BulkOptions

    def words(self) -> Words:
        """What decides about the job's result besides its rows.

        Raises:
            InvalidRequestError: the session has no model.
        """
        session = self.session
        if session.model is None:
            raise InvalidRequestError(
                "model: pass model= to RerankSession (--model), or set RERANK_MODEL: a job has one"
            )
        return {
            "endpoint": session.base_url,
            "dialect": session.dialect,
            "model": session.model,
            **limit_words(session.chunks),
            "on_failure": session.on_failure,
            "identical_once": self.options.identical_once,
            "top_n": self.source.top_n,
            **self.source.describe(),
        }

    def open_cache(self) -> ScoreCache:
        """The cache that the options name, to be closed by the caller.

        Raises:
            JobError: the file is no cache, or cannot be opened.
        """
        assert self.options.cache is not None
        session = self.session
        return ScoreCache(
            self.options.cache,
            endpoint=session.base_url,
            dialect=session.dialect,
            model=session.model or "",
        )

    def check(self) -> Callable[[Row], None]:
        """The function that refuses a row which the output could not hold; see `check_of`."""
        is_one_query = self.source.is_one_query
        return check_of(self.output, self.options.tag, is_one_query=is_one_query)


def _or_default(options: BulkOptions | None) -> BulkOptions:
    return options or BulkOptions()


@frozen(kw_only=True)
class JobSettings:
    """What a caller says of a job; `rerank_file` and `rerank_run` say what each means."""

    input: Name
    output: Name
    query: str | None = None
    query_id: str | int | None = None
    top_n: int | None = None
    run: Name | None = None
    depth: int | None = None
    job: Name | None = None
    options: BulkOptions = field(default=None, converter=_or_default)

    def assignment(self, session: RerankSession, scratch: Path | None = None) -> Assignment:
        """The job that is meant; nothing is read or written yet.

        Args:
            session: the session that sends.
            scratch: a directory for the source's own files; None: the job's directory.

        Raises:
            InvalidRequestError: an argument is wrong; the message names it.
            InputError: there is no such file.
        """
        if not isinstance(session, RerankSession):
            raise InvalidRequestError(
                f"session must be a RerankSession, not {type(session).__name__}"
            )
        given = local_path("input", self.input, instead=_ON_RAY)
        output = local_path("output", self.output, instead=_ON_RAY)
        run = None if self.run is None else local_path("run", self.run)
        output_format(output)
        directory = (
            output.with_name(output.name + ".job")
            if self.job is None
            else local_path("job", self.job)
        )
        _check_apart(output, directory, given, run, self.options.cache)
        is_corpus = self.query is not None
        most = session.chunks.max_documents or _DOCUMENTS_PER_REQUEST
        beside = Beside(
            query=self.query,
            query_id="1" if is_corpus and self.query_id is None else self.query_id,
            run=run,
            depth=self.depth,
            top_n=_TOP_OF_A_CORPUS if is_corpus and self.top_n is None else self.top_n,
            documents_per_row=min(_DOCUMENTS_PER_REQUEST, most),
            scratch=scratch or directory,
        )
        if given.is_dir() and is_part(output, beside) and _is_same(output.parent, given):
            raise InvalidRequestError(
                f"output {output} would be a part of the input, the directory that it lies in: "
                "name a file elsewhere"
            )
        source = open_source(given, beside)
        return Assignment(session, source, output, directory, self.options)


def _check_apart(
    output: Path, directory: Path, given: Path, run: Path | None, cache: Path | None
) -> None:
    """Refuse an output that would take the place of something else that the job needs.

    Raises:
        InvalidRequestError: the output is one of the others; the message says which.
    """
    others: dict[str, Path] = {"the job's directory": directory}
    if str(given) != STDIN:
        others["the input"] = given
    if run is not None:
        others["the run"] = run
    if cache is not None:
        others["the cache"] = cache
    for what, other in others.items():
        if _is_same(output, other):
            raise InvalidRequestError(f"output {output} is {what}: name another file")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        # One of them is not there (yet).
        return one.resolve() == other.resolve()
