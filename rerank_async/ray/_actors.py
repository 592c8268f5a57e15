"""The work of `rerank_parquet`: who does a part, and who gives work to whom.

`Hand` is an actor's side, `Driver` the other one.
A line belongs here when it is about actors that work, fail or are lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.exceptions
from attrs import define, field, frozen

from rerank_async._columns import BatchOutcome, Nested, batch_of, problem_of
from rerank_async._policy import is_outage
from rerank_async.batches import BatchReranker, is_refusal
from rerank_async.bulk._errors import InputError, JobDamagedError, JobError
from rerank_async.ray._arrow import FLAT, NESTED, ArrowTable, columns_of, outcome_table, ungrouped
from rerank_async.ray._parts import Counts, Unit, counts_of, part_name
from rerank_async.ray._places import Place
from rerank_async.ray._shares import Shares

__all__ = ["Driver", "Hand", "RayStop", "Task"]

RayStop: TypeAlias = Literal["refused", "outage"]

# What a part holds of an error is its name. Rows that failed by one of these are done again by the
# next run: the server refused them all, and not each for itself.
_REFUSED = frozenset({"AuthenticationError", "PermissionDeniedError", "NotFoundError"})

# So many units are given to an actor at once, so that the end of one holds up no slot.
_UNITS = 2
# So many rows in a row to which no server answered, and none in between that was answered.
_OUTAGE = 8
# What has ended so many actors one after another would end all.
_DEATHS = 5


@frozen
class Task:
    """What all actors of a job have in common.

    Attributes:
        reranker: batch function, as every actor gets it.
        source: place of the input, or of what was grouped of it.
        output: place where parts are written.
        nested: whether a row of the source is a query as it came, and not a group's row.
        size: number of rows in a part.
        slices: number of parts that may be in work at once in one actor.
        retry_failed: whether rows with an error are done again.
    """

    reranker: BatchReranker
    source: str
    output: str
    nested: bool
    size: int
    slices: int
    retry_failed: bool


@define
class Done:
    """What came of a unit.

    Attributes:
        parts: counts of the parts that are done, by their names.
        sent: number of queries that were asked for.
        kept: number of rows that were done before, of parts that were done again in part.
        stopped: reason for which there is no use in going on; None where there is.
        error: words of the error behind that; None where there is none.
    """

    parts: dict[str, Counts] = field(factory=dict)
    sent: int = 0
    kept: int = 0
    stopped: RayStop | None = None
    error: str | None = None


class Hand:
    """Does units of work; an actor."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._source = Place(task.source)
        self._output = Place(task.output)
        self._slots = asyncio.Semaphore(task.slices)
        self._is_stopped = False
        # Rows without an answer since the last that had one.
        self._unanswered = 0

    async def ready(self) -> None:
        """Answers as soon as the actor runs."""

    async def stop(self) -> None:
        """Begin no more parts."""
        self._is_stopped = True

    async def close(self) -> None:
        """Close the session."""
        await self._task.reranker.aclose()

    async def work(self, unit: Unit) -> Done:
        """Do the parts of a unit that are not done yet.

        Raises:
            InvalidRequestError: no session can be made here, for want of a key, say.
            JobError: a file cannot be read or written.
        """
        done = Done()
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._begin_parts(unit, done, tasks)
        except BaseExceptionGroup as group:
            # One is enough, and its own kind says more than the group's.
            raise group.exceptions[0] from None
        return done

    async def _begin_parts(self, unit: Unit, done: Done, tasks: asyncio.TaskGroup) -> None:
        slices = self._slices(unit)
        for number in range(max(unit.numbers) + 1):
            # In a thread: Ray wants to hear from the actor meanwhile.
            table = await asyncio.to_thread(next, slices, None)
            if table is None:
                raise InputError(f"{self._source.at(unit.name)} is shorter than it was")
            if number not in unit.numbers:
                continue
            await self._slots.acquire()
            if self._is_stopped:
                self._slots.release()
                return
            name = part_name(unit.file, unit.group, number)
            part = tasks.create_task(self._part(name, table, done))
            part.add_done_callback(lambda _: self._slots.release())

    def _slices(self, unit: Unit) -> Iterator[ArrowTable]:
        """The rows of the unit's row group, part by part."""
        size, wanted = self._task.size, NESTED if self._task.nested else FLAT
        try:
            with self._source.parquet(unit.name) as parquet:
                schema = parquet.schema_arrow
                names = [name for name in wanted if name in schema.names]
                rest: ArrowTable = schema.empty_table().select(names)
                batches = parquet.iter_batches(size, row_groups=[unit.group], columns=names)
                for batch in batches:
                    # What the reader hands out may be less than it is asked for.
                    rest = pa.concat_tables([rest, pa.table(batch).select(names)])
                    while rest.num_rows >= size:
                        yield rest.slice(0, size)
                        rest = rest.slice(size)
                if rest.num_rows:
                    yield rest
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self._source.at(unit.name)} cannot be read: {error}") from None

    async def _part(self, name: str, table: ArrowTable, done: Done) -> None:
        task = self._task
        # An actor that had this part before may have died after it wrote it.
        held = await asyncio.to_thread(counts_of, self._output, name)
        if held is not None and held.is_done(task.retry_failed):
            done.parts[name] = held
            return
        old = None
        if held is not None:
            old, table = await asyncio.to_thread(self._what_is_left, name, table)
            done.kept += old.num_rows
        if not task.nested:
            table = ungrouped(table)
        columns = await asyncio.to_thread(columns_of, table, NESTED if task.nested else FLAT)
        batch = batch_of(columns, task.reranker.top_n)
        outcomes = await task.reranker.outcomes(batch.queries)
        done.sent += len(batch.queries)
        answered = [one for one in outcomes if not isinstance(one, Exception)]
        stopped, error = self._why_stop(outcomes, len(answered))
        if stopped is not None:
            self._is_stopped = True
            done.stopped, done.error = stopped, error
            if not answered:
                # Nothing to keep: that these rows are not done is seen by the next run.
                return
        fresh = outcome_table(batch, table, outcomes)
        if not isinstance(batch, Nested):
            # The texts are in the input; here they would only be copied.
            fresh = fresh.drop_columns(["query", "text"])
        if old is not None:
            fresh = pa.concat_tables([old, fresh.cast(old.schema)])
        kinds = [kind for kind in fresh["error_type"].to_pylist() if kind is not None]
        counts = Counts(
            rows=fresh.num_rows,
            failed=len(kinds),
            refused=sum(kind in _REFUSED for kind in kinds),
            tokens=sum(one.usage.total_tokens or 0 for one in answered)
            + (0 if held is None else held.tokens),
        )
        await asyncio.to_thread(self._write, name, fresh, counts)
        done.parts[name] = counts

    def _what_is_left(self, name: str, table: ArrowTable) -> tuple[ArrowTable, ArrowTable]:
        """Of a part that was written, what stays as it is, and the input's rows for the rest."""
        with self._output.parquet(name) as parquet:
            old = parquet.read().replace_schema_metadata(None)
        ids = old["query_id"].to_pylist()
        again = {
            query_id
            for query_id, kind in zip(ids, old["error_type"].to_pylist(), strict=True)
            if kind is not None and (self._task.retry_failed or kind in _REFUSED)
        }
        given = table["query_id"].to_pylist()
        if not self._task.nested:
            given = [ids_of_group[0] for ids_of_group in given]
        if set(given) != set(ids):
            raise JobDamagedError(
                f"{self._output.at(name)} holds other rows than the input has in its place"
            )
        keep = pa.array([query_id not in again for query_id in ids])
        return old.filter(keep), table.filter(pa.array([query_id in again for query_id in given]))

    def _why_stop(
        self, outcomes: Sequence[BatchOutcome], answered: int
    ) -> tuple[RayStop | None, str]:
        """Why there is no use in going on; None if there is."""
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for failure in failures:
            if is_refusal(failure):
                return "refused", ": ".join(problem_of(failure))
        down = [failure for failure in failures if is_outage(failure)]
        self._unanswered = 0 if answered else self._unanswered + len(down)
        # One row alone that the server cannot do, and answers with 500, is none of its outages.
        policy = self._task.reranker.retry
        for failure in down:
            # The server itself says that nobody has the patience.
            if (getattr(failure, "retry_after", None) or 0.0) > policy.longest_hint:
                return "outage", ": ".join(problem_of(failure))
        was_waited_out = (
            not answered
            and policy.max_outage is not None
            and any(getattr(failure, "status", None) != 500 for failure in down)
        )
        # What was waited out once is not waited out by the next part, nor by the other actors.
        if was_waited_out or (down and self._unanswered >= _OUTAGE):
            return "outage", ": ".join(problem_of(down[0]))
        return None, ""

    def _write(self, name: str, table: ArrowTable, counts: Counts) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(counts.metadata()), sink)
        self._output.write(name, sink.getvalue().to_pybytes())


class Driver:
    """Gives units to actors, and goes on without those that are lost.

    Ray could do lost work again by itself, but only on an actor that it starts anew in the lost
    one's place; that one may find no machine, and a unit that ends every actor would be tried for
    ever.

    Attributes:
        parts: counts of all parts that this run knows to be done, by their names.
        sent: number of queries that were asked for.
        kept: number of rows as in `Done`.
        stopped: reason for which no more units are given out; None as long as they are.
        error: words of the error behind that; None where there is none.
        lost: number of actors that were lost.
    """

    def __init__(self, shares: Shares, task: Task, units: Sequence[Unit]) -> None:
        self.parts: dict[str, Counts] = {}
        self.sent = self.kept = self.lost = 0
        self.stopped: RayStop | None = None
        self.error: str | None = None
        self._shares = shares
        self._task = task
        self._units = deque(units)
        self._deaths: dict[Unit, int] = {}
        self._false_starts = 0
        self._begun = 0
        # By a number of ours: actors that were asked for, and how many units those that run have.
        self._actors: dict[int, Any] = {}
        self._loads: dict[int, int] = {}
        # What is waited for: an actor's start (None), or its unit.
        self._awaited: dict[Any, tuple[int, Unit | None]] = {}

    def run(self) -> None:
        """Do all units, or as many as there is a use in.

        Raises:
            RerankError: what an actor raised.
            JobError: actors do not start, or are lost over the same unit again and again.
        """
        try:
            for _ in range(min(self._shares.actors, len(self._units))):
                self._start()
            while self._is_busy():
                (ref,), _ = ray.wait(list(self._awaited), num_returns=1)
                self._take(ref, *self._awaited.pop(ref))
            closing = [self._actors[number].close.remote() for number in self._loads]
            if closing:
                # A courtesy: an actor that does not come to it is ended without.
                ray.wait(closing, num_returns=len(closing), timeout=10)
        finally:
            for actor in self._actors.values():
                ray.kill(actor)

    def _is_busy(self) -> bool:
        """Whether a unit is in work, or waits to be given out and may be."""
        in_work = any(unit is not None for _, unit in self._awaited.values())
        return in_work or (bool(self._units) and self.stopped is None)

    def _start(self) -> None:
        number, self._begun = self._begun, self._begun + 1
        kind: Any = ray.remote(Hand)
        kind = kind.options(
            num_cpus=self._shares.num_cpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        actor = self._actors[number] = kind.remote(self._task)
        self._awaited[actor.ready.remote()] = number, None

    def _take(self, ref: Any, number: int, unit: Unit | None) -> None:
        """Take what an actor has done, and see that all have something to do."""
        try:
            done: Done | None = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except ray.exceptions.RayError as error:
            self._lose(number, unit, error)
        else:
            if done is None:
                self._loads[number] = self._false_starts = 0
            else:
                self._note(done)
                if number in self._loads:
                    self._loads[number] -= 1
        if self.stopped is None:
            self._deal()

    def _note(self, done: Done) -> None:
        self.parts |= done.parts
        self.sent += done.sent
        self.kept += done.kept
        if done.stopped is not None and self.stopped is None:
            self.stopped, self.error = done.stopped, done.error
            for actor in self._actors.values():
                actor.stop.remote()

    def _deal(self) -> None:
        """Give out units, to whoever has fewest."""
        while self._units and self._loads:
            number = min(self._loads, key=self._loads.__getitem__)
            if self._loads[number] >= _UNITS:
                return
            unit = self._units.popleft()
            self._loads[number] += 1
            self._awaited[self._actors[number].work.remote(unit)] = number, unit

    def _lose(self, number: int, unit: Unit | None, error: Exception) -> None:
        """Put back what a lost actor had, and start another in its place.

        Raises:
            JobError: starting another would be no use.
        """
        if unit is None:
            self._false_starts += 1
            if self._false_starts >= _DEATHS:
                raise JobError(f"actors do not start: {error}") from None
        else:
            self._units.appendleft(unit)
            self._deaths[unit] = self._deaths.get(unit, 0) + 1
            if self._deaths[unit] >= _DEATHS:
                raise JobError(
                    f"{_DEATHS} actors were lost over row group {unit.group} of "
                    f"{unit.name or self._task.source}: {error}"
                ) from None
        # Of an actor that had several units, each tells of the loss.
        actor = self._actors.pop(number, None)
        if actor is not None:
            self._loads.pop(number, None)
            self.lost += 1
            # It may only have seemed lost.
            ray.kill(actor)
            if self.stopped is None:
                self._start()
