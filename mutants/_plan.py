"""Which modules are changed, how, which tests are to notice, and what is printed: pure.

A new way to change a line belongs here, as a method of `_Changes`.
"""

from __future__ import annotations

import ast
import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

# The units that decide without waiting, as `tests/test_layers.py` has them.
UNITS = (
    *("_version", "_condemned", "_errors", "_private", "_http", "_models", "events", "_jsonl"),
    *(
        "_moments",
        "_ordering",
        "_columns",
        "dialects",
        "_answers",
        "_chunking",
        "_merging",
        "_flow",
        "_policy",
    ),
    "trec",
)
# Two modules of `_flow` wait; and a job's modules that only decide, while the rest touches files.
WAITING = ("_flow/limiter", "_flow/control")
BULK = (
    *("bulk/_blame", "bulk/_entries", "bulk/_manifest", "bulk/_one_query", "bulk/_rows"),
    *("bulk/_sending", "bulk/_inputs/fields"),
)


def is_pure(module: str) -> bool:
    """Whether mutants are made of the module, such as `_flow/hints`."""
    unit = module.partition("/")[0]
    return module in BULK or (unit in UNITS and module not in WAITING)


# The test file of a module without one of its own name: `tests/DIR/test_NAME.py`.
_OWN: Mapping[str, str] = {
    "_columns": "tests/test_batches.py",
    "_flow/__init__": "tests/flow/test_fuse.py",
    "_http": "tests/test_private.py",
    "_jsonl": "tests/test_trec.py",
    "_moments": "tests/flow/test_hints.py",
    "_version": "tests/test_session.py",
    "bulk/_inputs/fields": "tests/bulk/inputs/test_fields.py",
    "dialects/__init__": "tests/dialects/test_dialect.py",
}
# Which others are asked where the module's own test notices nothing.
_NEIGHBOURS: Mapping[str, tuple[str, ...]] = {
    "_answers": ("tests/test_blanks.py", "tests/test_merging.py"),
    "_chunking": ("tests/test_chunk_invariance.py", "tests/test_lengths.py"),
    "_condemned": ("tests/test_errors.py",),
    "_errors": ("tests/test_condemned.py", "tests/test_policy.py"),
    "_flow/__init__": ("tests/test_policy.py",),
    "_flow/buckets": ("tests/flow/test_limiter.py",),
    "_flow/budget": ("tests/test_hedging.py",),
    "_flow/hints": ("tests/flow/test_control.py",),
    "_jsonl": ("tests/bulk/inputs/test_requests.py",),
    "_merging": ("tests/test_call.py", "tests/test_chunk_invariance.py"),
    "_models": ("tests/test_private.py",),
    "_moments": ("tests/test_policy.py", "tests/flow/test_buckets.py"),
    "_private": ("tests/test_errors.py",),
    "bulk/_entries": ("tests/bulk/test_journal.py",),
    "bulk/_inputs/fields": ("tests/bulk/inputs/test_requests.py",),
    "bulk/_one_query": ("tests/bulk/inputs/test_corpus.py",),
    "bulk/_manifest": ("tests/bulk/test_job.py",),
    "bulk/_rows": ("tests/bulk/inputs/test_requests.py",),
    "bulk/_sending": ("tests/bulk/test_runner.py",),
    "dialects/__init__": ("tests/dialects/test_v1.py",),
    "dialects/_dialect": ("tests/dialects/test_v1.py",),
    "dialects/_reading": ("tests/dialects/test_v1.py",),
    "dialects/_shapes": ("tests/dialects/test_v1.py",),
    "events": ("tests/test_private.py",),
}


def stages_of(module: str) -> tuple[tuple[str, ...], ...]:
    """The test files that are to notice a wrong line of `module`: its own, then its neighbours'."""
    folder, _, name = module.rpartition("/")
    parts = ("tests", folder.lstrip("_"), f"test_{name.lstrip('_')}.py")
    own = _OWN.get(module) or "/".join(filter(None, parts))
    return ((own,), _NEIGHBOURS[module]) if module in _NEIGHBOURS else ((own,),)


@dataclass(frozen=True)
class Edit:
    """A piece of a source text and what takes its place; offsets are of characters."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes:
        module: the module's path in the package without `.py`, such as `_flow/hints`.
        within: the function or class around the line, such as `Bucket.settle`, or an empty text.
        line: the first line that changes, without the white space around it.
        becomes: what this line is then.
        number: the line's number, from 1; it is shown, and is no part of the mutant's identity.
        edits: what has to be replaced, in the order of the text.
    """

    module: str
    within: str
    line: str
    becomes: str
    number: int
    edits: tuple[Edit, ...]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What stays the same when other lines of the module change."""
        return self.module, self.within, self.line, self.becomes

    def __str__(self) -> str:
        return f"{self.module}:{self.number}  {self.line}  →  {self.becomes or '(nothing)'}"


def applied(source: str, edits: Iterable[Edit]) -> str:
    """The text with these pieces replaced; they must not overlap."""
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        source = source[: edit.start] + edit.text + source[edit.end :]
    return source


_COMPARED: Mapping[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_COMPUTED: Mapping[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
# One string of a concatenation, or a comment between two of them.
_LITERAL = re.compile(r"""\s*(?:#[^\n]*|[a-zA-Z]*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'))""")
_IS_RAW = re.compile(r"""(?:[bf]?r|r[bf])["']""", re.IGNORECASE)


class _Changes(ast.NodeVisitor):
    """Gathers the edits of a module: whatever a reader could have typed wrongly."""

    def __init__(self, source: str) -> None:
        self.source = source
        # Where each line begins: ast counts bytes within a line, and the text has characters.
        self._lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._around: list[str] = []
        self.found: list[tuple[str, tuple[Edit, ...]]] = []

    def _place(self, line: int, column: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self._place(node.lineno, node.col_offset),
            self._place(node.end_lineno, node.end_col_offset),
        )

    def _change(self, *edits: Edit) -> None:
        self.found.append((".".join(self._around), edits))

    def _replace(self, node: ast.expr | ast.stmt, text: str) -> None:
        self._change(Edit(*self._span(node), text))

    def _between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Replace the operator `old` that stands between two expressions."""
        start, end = self._span(left)[1], self._span(right)[0]
        # A comment between them may hold the same characters.
        gap = re.sub(r"#[^\n]*", lambda match: " " * len(match[0]), self.source[start:end])
        pattern = r"\s+".join(map(re.escape, old.split()))
        match = re.search(pattern, gap)
        assert match is not None, (old, gap)
        self._change(Edit(start + match.start(), start + match.end(), new))

    # What is no behaviour: annotations, texts for readers, what type checkers alone see.

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assigned(node, node.target)
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        return

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        # `__slots__` and `__all__` are for memory and for readers.
        if not any(name.startswith("__") for name in names):
            self._assigned(node, *node.targets)
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self._condition(node.test)
            self.generic_visit(node)

    def _named(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._around.append(node.name)
        if isinstance(node, ast.ClassDef):
            for keyword in node.keywords:
                self.visit(keyword)
        else:
            self.visit(node.args)
        for statement in node.body:
            self.visit(statement)
        self._around.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _named

    # Statements.

    def _assigned(self, node: ast.stmt, *targets: ast.expr) -> None:
        # Without a first assignment the next line fails, which any test notices.
        if self._around and not any(isinstance(target, ast.Name) for target in targets):
            self._replace(node, "pass")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._replace(node, "pass")
        old, new = _COMPUTED[type(node.op)]
        self._between(node.target, node.value, old + "=", new + "=")
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if not isinstance(node.value, ast.Yield | ast.YieldFrom):
            self._replace(node, "pass")
        self.visit(node.value)

    def _left_out(self, node: ast.Raise | ast.Delete | ast.Continue | ast.Break) -> None:
        # A message is for readers.
        self._replace(node, "pass")

    visit_Raise = visit_Delete = visit_Continue = visit_Break = _left_out

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self._replace(node, "pass")
            return
        if ast.unparse(node.value) != "None":
            self._replace(node.value, "None")
        self.visit(node.value)

    def visit_While(self, node: ast.While) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    # Expressions.

    def _condition(self, test: ast.expr) -> None:
        # A comparison, an `and` and a `not` are changed on their own.
        if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant):
            start, end = self._span(test)
            self._change(Edit(start, end, f"not ({self.source[start:end]})"))

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._condition(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            self._between(left, right, *_COMPARED[type(operator)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._between(node.left, node.right, *_COMPUTED[type(node.op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self._change(Edit(self._span(node)[0], self._span(node.operand)[0], ""))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name):
            if node.func.id in _CALLED:
                self._replace(node.func, _CALLED[node.func.id])
            if node.func.id in ("TypeVar", "cast", "NewType", "ParamSpec"):
                return
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._replace(node, str(not value))
        elif isinstance(value, int):
            self._replace(node, str(value + 1))
        elif isinstance(value, float):
            self._replace(node, repr(value * 1.5 if value else 1.0))
        elif isinstance(value, str | bytes):
            self._pattern(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        # What stands between its braces has no reliable places before Python 3.12.
        self._pattern(node)

    def _table(self, node: ast.Set | ast.Tuple | ast.List) -> None:
        self._without_each([self._span(element) for element in node.elts])
        self.generic_visit(node)

    visit_Set = visit_Tuple = visit_List = _table

    def visit_Dict(self, node: ast.Dict) -> None:
        rows = [
            (self._span(value if key is None else key)[0], self._span(value)[1])
            for key, value in zip(node.keys, node.values, strict=True)
        ]
        self._without_each([row for row, key in zip(rows, node.keys, strict=True) if key])
        self.generic_visit(node)

    def _without_each(self, spans: Sequence[tuple[int, int]]) -> None:
        # A tuple within a function is rather a group of values than a table.
        if self._around or len(spans) < 2:
            return
        for start, end in spans:
            comma = re.compile(r"\s*,").match(self.source, end)
            self._change(Edit(start, comma.end() if comma else end, ""))

    def _pattern(self, node: ast.Constant | ast.JoinedStr) -> None:
        """A regular expression without one of its alternatives, or of its word boundaries."""
        start, end = self._span(node)
        if not _IS_RAW.match(self.source, start):
            return
        places: list[int] = []
        for match in _LITERAL.finditer(self.source, start, end):
            for group in (1, 2):
                places.extend(range(*match.span(group)))
        text = "".join(self.source[place] for place in places)
        for begin, stop in (*_boundaries(text), *_alternatives(text)):
            self._change(*(Edit(place, place + 1, "") for place in places[begin:stop]))


def _tokens(pattern: str) -> Iterator[tuple[int, str]]:
    """The parts of a regular expression: escapes and classes whole, else single characters."""
    for match in re.finditer(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", pattern, re.DOTALL):
        yield match.start(), match[0]


def _boundaries(pattern: str) -> Iterator[tuple[int, int]]:
    for place, token in _tokens(pattern):
        if token in (r"\b", r"\B"):
            yield place, place + 2


def _alternatives(pattern: str) -> Iterator[tuple[int, int]]:
    """Each alternative together with one bar beside it."""
    # For each group that is open: where each of its alternatives begins.
    open_groups = [[0]]
    for place, part in (*_tokens(pattern), (len(pattern), ")")):
        if part == "(":
            head = re.compile(r"\((?:\?(?:[:=!]|<[=!]|P<\w+>))?").match(pattern, place)
            assert head is not None
            open_groups.append([head.end()])
        elif part == "|":
            open_groups[-1].append(place + 1)
        elif part == ")":
            starts = open_groups.pop()
            if len(starts) > 1:
                for start, following in zip(starts, [*starts[1:], place + 1], strict=True):
                    is_last = following == place + 1
                    yield (start - 1, place) if is_last else (start, following)


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Every mutant of a module's text that Python compiles, each once."""
    changes = _Changes(source)
    changes.visit(ast.parse(source))
    made = {}
    for within, edits in changes.found:
        first = min(edit.start for edit in edits)
        number = source.count("\n", 0, first) + 1
        mutated = applied(source, edits)
        try:
            compile(mutated, module, "exec", dont_inherit=True)
        except SyntaxError:
            continue
        line, becomes = (text.splitlines()[number - 1].strip() for text in (source, mutated))
        made[mutated] = Mutant(module, within, line, becomes, number, tuple(edits))
    return list(made.values())


def in_order(mutants: Iterable[Mutant], seed: int) -> list[Mutant]:
    """The mutants in an order that looks like chance: a sample is as many as one likes of these.

    The order of two mutants depends on themselves and on the seed, so that a change of another line
    leaves a sample nearly as it was.
    """
    return sorted(
        mutants,
        key=lambda mutant: hashlib.sha256(repr((seed, *mutant.key)).encode()).digest(),
    )


@dataclass(frozen=True)
class Equivalents:
    """The list of mutants that no test can tell from the original, each with its reason."""

    reasons: Mapping[tuple[str, str, str, str], str]

    def __contains__(self, mutant: Mutant) -> bool:
        return mutant.key in self.reasons

    def left_over(self, mutants: Iterable[Mutant]) -> list[tuple[str, str, str, str]]:
        """The entries that fit none of these mutants: the line was changed, or is gone."""
        known = {mutant.key for mutant in mutants}
        return [key for key in self.reasons if key not in known]


def equivalents(listed: str) -> Equivalents:
    """The list from the text of `equivalent.toml`.

    Raises:
        ValueError: an entry has no reason, or two entries are of the same mutant.
    """
    reasons = {}
    for entry in tomllib.loads(listed).get("equivalent", []):
        key = (entry["module"], entry["within"], entry["line"], entry["becomes"])
        if not entry.get("reason", "").strip():
            raise ValueError(f"no reason is given: {key}")
        if key in reasons:
            raise ValueError(f"this is listed twice: {key}")
        reasons[key] = entry["reason"]
    return Equivalents(reasons)


Fate: TypeAlias = Literal["killed", "hung", "survived", "equivalent"]


def share(all_fates: Iterable[Fate]) -> float:
    """How much of what is not equivalent was killed, from 0 to 1; 1 where nothing was run."""
    fates = Counter(all_fates)
    killed = fates["killed"] + fates["hung"]
    judged = killed + fates["survived"]
    return killed / judged if judged else 1.0


def table(results: Iterable[tuple[Mutant, Fate]]) -> str:
    """One line for each module and one for all of them."""
    rows: dict[str, Counter[Fate]] = {}
    for mutant, fate in results:
        rows.setdefault(mutant.module, Counter())[fate] += 1
    total: Counter[Fate] = sum(rows.values(), Counter())
    width = max(map(len, (*rows, "module")))
    lines = [f"{'module':<{width}}  made  killed  survived  equivalent  killed"]
    for name, fates in (*sorted(rows.items()), ("all", total)):
        lines.append(
            f"{name:<{width}}  {fates.total():4}  {fates['killed'] + fates['hung']:6}"
            f"  {fates['survived']:8}  {fates['equivalent']:10}  {share(fates.elements()):6.1%}"
        )
    return "\n".join(lines)
