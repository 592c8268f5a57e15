"""The climb-and-cut search: how many attempts at once give the best goodput, found by trying.

Goodput is documents answered per second. By Little's law it is the attempts on the wire over the
time that an attempt takes; comparing that time at two limits tells whether the larger one pays.
Measured so, it needs no full window of a steady load, and a few slow answers do not drown it.
What a server refuses is counted too: an answer that takes two attempts takes twice its share of the
limit. A share that is refused at any limit drops out of the comparison; one that is refused because
the limit is too high makes a lower one as good.

`TRANSITIONS` has the phases of the search, and what leads from one to the next.

A line belongs here when it moves the limit because of what became of the attempts; what the limit
holds back is `limiter`'s, and what counts as overload is `alarm`'s.
"""

from __future__ import annotations

from math import exp, hypot, inf, log, sqrt
from statistics import fmean
from typing import Literal, TypeAlias

from rerank_async._flow import Ending
from rerank_async._flow.alarm import Alarm
from rerank_async._moments import GRAIN

__all__ = ["TRANSITIONS", "Climber"]

# ── the phases ──

# looking: rounds are measured at home, which is the limit that was best so far.
# trying: the limit goes to the trial's, and rounds are measured there.
# resting: rounds are measured at home, as many as are worth waiting for before the next trial.
# returning: the limit rises to where it was before a cut, and a round is measured there.
Phase: TypeAlias = Literal["looking", "trying", "resting", "returning"]

# a step may pay: home is known well enough, and there is a larger or smaller limit to try.
# no step is left: neither a larger nor a smaller limit paid, or there is none.
# better, no better: the trial is over, and that is what goodput says of it.
# changed: twice in a row the answers at home took another time than they used to.
# pause over: the level that was too much has been avoided for long enough.
# back: a round was measured at the limit that there was before the cut.
# overload: throttles, resets or timeouts rang the alarm, or the latency guard did.
Happening: TypeAlias = Literal[
    "a step may pay",
    "no step is left",
    "better",
    "no better",
    "changed",
    "pause over",
    "back",
    "overload",
]

# Each row: the phase, what happened in it, the phase that comes then, and why that one.
# A phase that follows itself begins anew.
TRANSITIONS: tuple[tuple[Phase, Happening, Phase, str], ...] = (
    ("looking", "a step may pay", "trying", "only a trial tells whether it does"),
    ("looking", "no step is left", "resting", "each trial costs goodput or time"),
    ("looking", "changed", "looking", "what was measured is of another server"),
    ("looking", "pause over", "returning", "the overload may be over, and a return is quick"),
    ("looking", "overload", "looking", "what was measured at the old home does not count here"),
    ("trying", "better", "looking", "this is home now, and is known: a trial may follow at once"),
    ("trying", "no better", "looking", "home is where it was, and the other direction is left"),
    ("trying", "pause over", "returning", "the old limit is worth more than this trial's"),
    ("trying", "overload", "looking", "the trial was too much, or home is"),
    ("resting", "a step may pay", "trying", "the rest is over, and servers change"),
    ("resting", "no step is left", "resting", "there is still nothing to try"),
    ("resting", "changed", "looking", "what was found out is of another server"),
    ("resting", "pause over", "returning", "the overload may be over, and a return is quick"),
    ("resting", "overload", "looking", "home is too much now"),
    ("returning", "back", "looking", "the server takes it: this is home again"),
    ("returning", "overload", "looking", "it was the load: that level is avoided for longer"),
)
_NEXT = {(phase, happened): then for phase, happened, then, _ in TRANSITIONS}

# ── the numbers ──

# A round is as many answers as the limit, but not fewer than this: a mean of four says too little.
_ROUND = 16
# The share of a round's answers that counts as no slower than the rest: a few that take twenty
# times as long would drown the difference looked for.
_SLOWEST = 0.1
# A round counts when this share of the limit was in use. Times _STEP it is above 1: a limit that
# the caller does not fill never looks as if it paid.
_USED = 0.9
# How many rounds a mean remembers: enough to beat a trial's noise, few enough to follow a drift.
_MEMORY = 16
# The least that answers' times are taken to deviate: in a batch all take the same, but the next
# batch takes another time.
_LEAST_SPREAD = 0.05
# The weight of a round in what is known of the rounds' noise, and how many times that noise a round
# may add: a server that changes must not look like one that is unsteady.
_NOISE_WEIGHT = 1 / 8
_SURPRISE = 4.0
# An answer takes at least and at most this long: a clock may stand still, and squares overflow.
_SHORTEST, _LONGEST = 1e-6, 1e6

# The search doubles until that does not pay, and then goes by a fifth: less would take too long to
# tell from noise, more would lose goodput with each trial. Where goodput grows nearly in step with
# the limit, there is far to go, and the steps become longer again.
_LONG_STEP = 2.0
_STEP = 1.2
# "Nearly in step": d ln(goodput) / d ln(limit).
_IN_STEP = 0.6
# A trial is over when the answer is this many standard errors away from the rule, or after so many
# rounds: then the likelier answer is taken. What it is compared with is no better known than this
# share of the step, and there is no use in knowing one side much better than the other.
_SURE = 1.5
_LONGEST_TRIAL = 8
_KNOWN = 0.5
_RATIO = 4
# Rounds of rest when neither more nor less was better: at first, and at most; and never for more
# seconds than this. A server that got back its capacity is found out after at most that long.
_REST = 8
_LONGEST_REST = 48
_REST_SECONDS = 60.0
# Rounds to look before a trial after a cut, and when the server has changed.
_LOOK = 3

# What a cut leaves of the limit.
_CUT = 0.7
# About three failures in a row ring the alarm. A throttle with a time to come back, by which the
# server speaks of its load, weighs so many times as much, and makes the pause so much longer.
_BITS = 12.0
_TOLD = 2.5
_TOLD_LONGER = 64.0
# The level that was too much is avoided for so many times as long as an answer takes: at first, and
# at most; and never for more seconds than this. Each time that it is too much again, soon, the
# pause doubles: each costs some throttled answers, of which there should be fewer than one in a
# hundred. Where it is not too much again it was an accident, and a short pause is all that it cost.
_PAUSE = 4.0
_LONGEST_PAUSE = 1024.0
_LONGEST_SECONDS = 300.0
# Twice the pause and so many times an answer's time after a cut, another is of another obstacle.
_SOON = 256.0
# Not worth a trial: a step that ends nearer to the level that was too much.
_CLEARANCE = 0.95
_LEAST_STEP = 1.1

# A cut by `latency_guard` that left the answers' time above this share of what it was did not help:
# it is not the load, the server has become slower.
_HELPED = 0.85

# The server has changed when at the same limit its answers take so much longer or shorter, and so
# many standard errors, in two rounds on end.
_SHIFT = log(1.2)
_SHIFT_ERRORS = 4.0
# A round's weight in the usual time that `latency_guard` is a multiple of.
_USUAL_WEIGHT = 1 / 64

_REASONS = {
    "throttled": "throttled",
    "paused": "throttled",
    "reset": "resets",
    "timeout": "timeouts",
}


class _Level:
    """What was measured at one limit: a mean over rounds, the last ones counting most.

    Attributes:
        rounds: the number of rounds that were added.
        count: the number of answers that the mean stands for.
        mean: the mean time of an answer, as a multiple of what is usual for its number of
            documents.
        spread: the mean squared deviation of an answer's time, relative to the mean.
        lost: the attempts that failed because of the load, for each attempt that was answered.
    """

    __slots__ = ("count", "lost", "mean", "rounds", "spread")

    def __init__(self) -> None:
        self.rounds = 0
        self.count = 0
        self.mean = 1.0
        self.spread = 0.0
        self.lost = 0.0

    def add(self, count: int, mean: float, spread: float, lost: float) -> None:
        self.rounds += 1
        self.count = min(self.count + count, _MEMORY * count)
        share = count / self.count
        self.mean += share * (mean - self.mean)
        self.spread += share * (spread - self.spread)
        self.lost += share * (lost - self.lost)

    def cost(self) -> float:
        """An answer's share of the limit: its own time, and that of the attempts lost for it."""
        return self.mean * (1.0 + self.lost)

    def error(self, count: int, spread: float) -> float:
        """The standard error of ln(another mean / this one).

        Where attempts queue up, waiting evens out their times, but not the goodput: of the two
        spreads the larger is the true one.
        """
        return sqrt(max(self.spread, spread) * (1 / self.count + 1 / count))

    def doubt(self) -> float:
        """The squared standard error of ln(1 + lost), as of a number that is counted."""
        return self.lost / ((1.0 + self.lost) * self.count)


class Climber:
    """Finds the smallest limit with nearly the best goodput, and follows it.

    It measures rounds of answers, tries a larger limit (rising by one with each answer), keeps it
    if goodput grew by at least `gain` of what the limit did, and goes back otherwise; likewise it
    tries a smaller one, and keeps it if goodput did not fall by as much. When neither helps it
    rests, longer each time, unless the answers' time shows that the server has changed.
    Overload cuts at once: throttles, resets or timeouts, if they come closer together than they
    usually do. It cuts to the limit before the trial, or else to seven tenths, once for all
    attempts that were on the wire then.
    Soon after the limit returns to where it was. If that is too much again, it was the load; then
    the level is avoided, longer each time. If not, the failures had nothing to do with the load.
    A limit that is not made use of is left as it is.

    Args:
        start: the limit to begin with, in attempts.
        minimum: the lowest limit that there may be; at least 1.
        maximum: the highest limit that there may be.
        gain: the least growth of goodput, as a share of the limit's growth, that is worth more
            attempts at once: with 0 latency is no object, with 1 nothing is worth it.
        latency_guard: the multiple of the usual time from which on a round's answers are overload;
            with None the time of answers is none.

    Attributes:
        limit: the number of attempts that may be on the wire now.
        cuts: the number of times that overload cut the limit.
        reason: the reason for the last change, in a word or two; empty before the first one.
        heeds_answers: the constant True: it has to be told of every answer.
        unheard: the constant 0: no answer is kept from it.
    """

    heeds_answers: bool = True
    unheard: int = 0

    def __init__(
        self,
        start: int = 8,
        minimum: int = 1,
        maximum: int = 512,
        *,
        gain: float = 0.15,
        latency_guard: float | None = None,
    ) -> None:
        self._minimum = max(1, minimum)
        self._maximum = max(self._minimum, maximum)
        self._gain = gain
        self._guard = latency_guard
        self.limit = min(max(start, self._minimum), self._maximum)
        self.cuts = 0
        self.reason = ""
        self._phase: Phase = "looking"
        # Where the limit is rising to, and where it goes back to when a trial fails.
        self._target = self._home = self.limit
        self._base = _Level()
        self._trial = _Level()
        self._odd = False
        # The round. After a change it begins when as many attempts as the limit that were started
        # since have been answered: the first of them to end are the quick ones.
        self._changed = -inf
        self._skip = self.limit
        self._round: list[tuple[int, float]] = []
        self._lost = 0
        self._peak = 0
        self._noise = 0.0
        # Seconds by size, a power of two of documents; and the guard's multiple of them.
        self._usual: dict[int, float] = {}
        self._usual_mean: float | None = None
        self._up = True
        self._step = _LONG_STEP
        self._failed = 0
        self._rest = 1
        self._rest_until = inf
        self._next_rest = _REST
        # Overload: the alarm, the level that was too much and for how long it is avoided, and the
        # limit to return to; 0 for none. An answer's seconds say how long that is.
        self._alarm = Alarm(_BITS)
        self._last_cut = -inf
        self._took = 0.0
        self._ceiling = inf
        self._pause = _PAUSE
        self._former = 0
        self._slow = 0.0
        self._is_told = False

    def finished(
        self, now: float, started: float, documents: int, ending: Ending, in_flight: int
    ) -> None:
        """Take note of one attempt's end, and perhaps change `limit`. See `Controller`."""
        if ending == "answered":
            self._alarm.answered()
            if self._former and self._phase != "returning":
                self._return(now, now - started)
            if self.limit < self._target:
                if 2 * in_flight >= self.limit:
                    self._set(now, self.limit + 1)
            elif self._skip > 0:
                if started >= self._changed - GRAIN:
                    self._skip -= 1
            else:
                self._peak = max(self._peak, in_flight)
                self._round.append((documents.bit_length(), now - started))
                if len(self._round) >= max(_ROUND, self.limit):
                    self._end_round(now)
        elif ending != "other":
            if self._skip == 0 and started >= self._changed - GRAIN:
                # Whoever is refused at once is on the wire for a moment: only here it is seen.
                self._peak = max(self._peak, in_flight)
                self._lost += 1
            is_told = ending == "paused"
            if started >= self._last_cut and self._alarm.failed(_TOLD if is_told else 1.0):
                self._cut(now, in_flight, _REASONS[ending], is_told=is_told)

    def _turn(self, happened: Happening) -> None:
        """Go on to the phase that comes when this happens in the present one."""
        self._phase = _NEXT[self._phase, happened]

    def _stay_home(self, happened: Happening, rounds: int) -> None:
        """Go on to a phase in which so many rounds are measured at home before the next trial."""
        self._turn(happened)
        self._odd = False
        self._rest = rounds
        self._rest_until = inf

    def _set(self, now: float, limit: int) -> None:
        self.limit = limit
        self._changed = now
        self._skip = limit
        self._forget_round()

    def _forget_round(self) -> None:
        self._peak = self._lost = 0
        self._round.clear()

    def _go(self, now: float, target: int) -> None:
        # Down at once; up by one with each answer, so that a full server refuses only a few.
        self._target = target
        if target < self.limit:
            self._set(now, target)

    def _is_pause(self, now: float) -> bool:
        """Whether the level that was too much is still avoided."""
        return now - self._last_cut < self._seconds() - GRAIN

    def _seconds(self) -> float:
        return min(self._pause * self._took, _LONGEST_SECONDS)

    def _cut(self, now: float, in_flight: int, reason: str, *, is_told: bool = False) -> None:
        if self.limit == self._minimum:
            # Less than the least there is not: what fails here fails whatever the load is.
            return
        # Where much of the limit was free, it was not the limit that was too much.
        is_used = in_flight >= _USED * self.limit
        level = max(1, min(self.limit, in_flight)) if is_used else self.limit
        since = now - self._last_cut
        is_soon = since <= 2.0 * self._seconds() + _SOON * self._took + GRAIN
        self._is_told = is_told
        if self._home >= level:
            # Where the server itself says again that it is the load, the search finds the level.
            self._former = 0 if is_told and is_soon else max(self._former, self._home)
            self._home = max(self._minimum, int(_CUT * level))
            self._base = _Level()
            self._next_rest = _REST
        if is_used:
            # Soon after the last pause it is the same obstacle, much later it is another one.
            if not is_soon:
                self._pause = _PAUSE
            elif since >= self._seconds() - GRAIN:
                longer = _TOLD_LONGER if is_told else 2.0
                self._pause = min(longer * self._pause, _LONGEST_PAUSE)
            self._ceiling = level
        if self._home < self.limit:
            self.cuts += 1
            self.reason = reason
        self._last_cut = now
        self._up, self._step, self._failed = False, _STEP, 0
        self._stay_home("overload", _LOOK)
        self._go(now, self._home)

    def _return(self, now: float, took: float) -> None:
        """Rise to where the limit was before the cut, when the pause is over."""
        if not self._took:
            self._took = took
        if not self._is_pause(now):
            self._turn("pause over")
            self.reason = "coming back"
            self._go(now, self._former)

    def _end_round(self, now: float) -> None:
        measured = self._measure() if self._peak >= _USED * self.limit else None
        lost = self._lost / len(self._round)
        self._forget_round()
        if measured is None:
            return
        count, mean, spread = measured
        if self._guard is not None and self._is_slow(self._guard, mean):
            self._cut(now, self.limit, "latency")
            return
        # Rounds vary more than their answers where those wait in one queue or come in one batch.
        level = self._trial if self._phase == "trying" else self._base
        if level.rounds and not self._odd and self._phase != "returning":
            varied = log(mean / level.mean) ** 2 / (1 / count + 1 / level.count)
            most = _SURPRISE * max(spread, self._noise)
            self._noise += _NOISE_WEIGHT * (min(varied, most) - self._noise)
        spread = max(spread, self._noise)
        if self._phase == "trying":
            self._trial.add(count, mean, spread, lost)
            self._judge(now, self._base, self._trial)
        elif self._phase == "returning":
            self._settle(_Level())
            self._base.add(count, mean, spread, lost)
            self._stay_home("back", _REST)
            if not self._is_told:
                # It was an accident, and the next one is another.
                self._pause = _PAUSE
        elif not self._is_odd(count, mean, spread):
            self._base.add(count, mean, spread, lost)
            self._rest -= 1
            if self._rest <= 0 or now >= self._rest_until - GRAIN:
                self._try(now)

    def _settle(self, level: _Level) -> None:
        """This is home from now on."""
        self._home = self.limit
        self._base = level
        self._failed = 0
        self._next_rest = _REST
        if self._former <= self._home:
            self._former = 0

    def _is_slow(self, guard: float, mean: float) -> bool:
        """Whether a round took so long that the latency guard has to cut."""
        if self._usual_mean is None:
            self._usual_mean = mean
        is_slow = mean > guard * self._usual_mean
        if is_slow and self._slow and mean > _HELPED * self._slow:
            # The last cut did not help.
            self._usual_mean = mean
            is_slow = False
        self._slow = mean if is_slow else 0.0
        if not is_slow:
            self._usual_mean += _USUAL_WEIGHT * (mean - self._usual_mean)
        return is_slow

    def _measure(self) -> tuple[int, float, float] | None:
        """The round's count, mean and spread, as a `_Level` takes them; None if all sizes are new.

        A mean of times over a mean of usual times does not mind which sizes a round happened to
        have.
        """
        times: dict[int, list[float]] = {}
        self._took = fmean(took for _, took in self._round)
        for size, took in self._round:
            times.setdefault(size, []).append(min(max(took, _SHORTEST), _LONGEST))
        usual = self._usual
        if not usual:
            usual.update({size: fmean(sample) for size, sample in times.items()})
        ratios = sorted(
            (took / usual[size], usual[size])
            for size, sample in times.items()
            if size in usual
            for took in sample
        )
        level = self._trial if self._phase == "trying" and self._trial.rounds else self._base
        for size in times.keys() - usual.keys():
            usual[size] = fmean(times[size]) / level.mean
        if not ratios:
            return None
        count = len(ratios)
        cap = ratios[-1 - int(_SLOWEST * count)][0]
        work = sum(weight for _, weight in ratios)
        mean = sum(weight * min(ratio, cap) for ratio, weight in ratios) / work
        square = sum((weight * (min(ratio, cap) - mean)) ** 2 for ratio, weight in ratios)
        return count, mean, max(count * square / (work * mean) ** 2, _LEAST_SPREAD**2)

    def _is_odd(self, count: int, mean: float, spread: float) -> bool:
        """Whether the round does not fit what is known; after the second such all starts anew."""
        again, self._odd = self._odd, False
        if not self._base.rounds:
            return False
        moved = log(mean / self._base.mean)
        if abs(moved) <= max(_SHIFT, _SHIFT_ERRORS * self._base.error(count, spread)):
            return False
        if not again:
            self._odd = True
            return True
        # Where half of the slots are gone, the answers take twice as long: try as far as that.
        self._base = _Level()
        self._up = moved < 0
        self._step = min(max(_STEP, exp(abs(moved))), _LONG_STEP)
        self._failed = 0
        self._stay_home("changed", _LOOK)
        self._next_rest = _REST
        return False

    def _try(self, now: float) -> None:
        base = self._base
        known = sqrt(base.spread / base.count) <= _KNOWN * log(self._step)
        if not known and base.rounds < _MEMORY:
            return
        while self._failed < 2:
            target = self._larger(now) if self._up else self._smaller()
            if target != self._home:
                self._turn("a step may pay")
                self._trial = _Level()
                self.reason = "trying more" if self._up else "trying less"
                self._go(now, target)
                return
            self._fail()
        self._failed = 0
        self._stay_home("no step is left", self._next_rest)
        self._rest_until = now + _REST_SECONDS
        self._next_rest = min(2 * self._next_rest, _LONGEST_REST)

    def _smaller(self) -> int:
        return max(self._minimum, min(self._home - 1, int(self._home / self._step)))

    def _larger(self, now: float) -> int:
        home = self._home
        target = min(self._maximum, max(home + 1, int(self._step * home)))
        if self._is_pause(now) and target >= _CLEARANCE * self._ceiling:
            target = min(target, int((home + self._ceiling) / 2))
            if target < _LEAST_STEP * home:
                return home
        return target

    def _judge(self, now: float, base: _Level, trial: _Level) -> None:
        step = log(self.limit / self._home)
        grown = step - log(trial.cost() / base.cost())
        error = hypot(base.error(trial.count, trial.spread), sqrt(base.doubt() + trial.doubt()))
        errors = (grown - self._gain * step) / error
        over = trial.rounds >= _LONGEST_TRIAL or trial.count >= _RATIO * base.count
        if abs(errors) < _SURE and not over:
            return
        if errors > 0:
            self._stay_home("better", 1)
            reason = "goodput grew" if self._up else "same goodput with less"
            self._settle(trial)
            if not self._up:
                self._step = _STEP
            elif grown > _IN_STEP * step:
                self._step = min(_STEP * self._step, _LONG_STEP)
            self._try(now)
            # The next trial, if it is one, comes of this.
            self.reason = reason
        else:
            self._stay_home("no better", 1)
            self.reason = "no gain" if self._up else "less goodput"
            self._fail()
            self._go(now, self._home)

    def _fail(self) -> None:
        self._failed += 1
        self._up = not self._up
        self._step = _STEP
