"""`mutants/_plan.py`: what is made of a line, in which order, and what is counted."""

from pathlib import Path

import pytest

from mutants._plan import (
    BULK,
    UNITS,
    WAITING,
    Fate,
    Mutant,
    applied,
    equivalents,
    in_order,
    is_pure,
    mutants_of,
    share,
    stages_of,
    table,
)
from tests.test_layers import FLOW_EDGES, PACKAGE, PURE

TESTS = Path(__file__).parents[2]
LISTED = (TESTS / "mutants" / "equivalent.toml").read_text(encoding="utf-8")


def made(source: str) -> list[str]:
    """The whole text of each mutant."""
    return [applied(source, mutant.edits) for mutant in mutants_of("m", source)]


def within(lines: str) -> list[str]:
    """Each mutant of lines within a function, without that function's first line."""
    head = "def f(a, b, c):\n"
    body = "".join(f"    {line}\n" for line in lines.split("\n"))
    return [
        "\n".join(line.strip() for line in text.removeprefix(head).splitlines())
        for text in made(head + body)
    ]


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        # comparisons, each of a chain on its own
        ("x = a < b", ["x = a <= b"]),
        ("x = a <= b < c", ["x = a < b < c", "x = a <= b <= c"]),
        ("x = a > b", ["x = a >= b"]),
        ("x = a >= b", ["x = a > b"]),
        ("x = a == b", ["x = a != b"]),
        ("x = a is  not b", ["x = a is b"]),
        ("x = a is b", ["x = a is not b"]),
        ("x = a not in b", ["x = a in b"]),
        # arithmetic
        ("x = a + b", ["x = a - b"]),
        ("x = a // b", ["x = a * b"]),
        ("x = -a", ["x = a"]),
        ("x += a", ["pass", "x -= a"]),
        # constants
        ("x = 3", ["x = 4"]),
        ("x = 2.0", ["x = 3.0"]),
        ("x = 0.0", ["x = 1.0"]),
        ("x = True", ["x = False"]),
        # truth
        ("x = a and b or c", ["x = a and b and c", "x = a or b or c"]),
        ("x = not a", ["x = a"]),
        ("x = b if a else c", ["x = b if not (a) else c"]),
        ("x = [b for b in c if a]", ["x = [b for b in c if not (a)]"]),
        # answers
        ("return a", ["return None"]),
        ("return None", []),
        ("return", ["pass"]),
        ("x = min(a, b)", ["x = max(a, b)"]),
        ("x = any(a)", ["x = all(a)"]),
        # statements
        ("a.x = b", ["pass"]),
        ("a.append(b)", ["pass"]),
        ("raise a", ["pass"]),
        # what is no behaviour
        ('"""Text."""', []),
        ('x = "text"', []),
        ("x: Literal[1, 2] = a", []),
    ],
)
def test_a_line_is_changed_as_a_reader_could_have_mistyped_it(
    line: str, becomes: list[str]
) -> None:
    assert sorted(within(line)) == sorted(becomes)


def test_a_condition_is_turned_round_and_what_it_does_is_left_out() -> None:
    assert sorted(within("while a:\n    break")) == ["while a:\npass", "while not (a):\nbreak"]


@pytest.mark.parametrize(
    ("source", "becomes"),
    [
        ('P = r"a|bc"', ['P = r"a"', 'P = r"bc"']),
        (r'P = rb"\bx\\b"', [r'P = rb"x\\b"']),
        ('P = r"x(?:a|b)y"', ['P = r"x(?:a)y"', 'P = r"x(?:b)y"']),
        # A bar in a class or behind a backslash is none, and groups have bars of their own.
        (r'P = r"[|(]\|\("', []),
        ('P = r"(a|b)|c"', ['P = r"(a)|c"', 'P = r"(a|b)"', 'P = r"(b)|c"', 'P = r"c"']),
        # An alternative may begin in one string and end in the next.
        (
            'P = (\n    r"a|b"  # "or" | not\n    r"c"\n)',
            [
                'P = (\n    r"a"  # "or" | not\n    r""\n)',
                'P = (\n    r"bc"  # "or" | not\n    r"c"\n)'.replace("bc", "b"),
            ],
        ),
        ('P = rf"a|{b}"', ['P = rf"a"', 'P = rf"{b}"']),
        ('P = "a|b"', []),
    ],
)
def test_an_expression_loses_each_alternative_and_each_boundary(
    source: str, becomes: list[str]
) -> None:
    assert sorted(made(source)) == sorted(becomes)


def test_a_table_loses_each_of_its_rows_and_a_tuple_in_a_function_none() -> None:
    assert sorted(made('T = {"a", "b"}')) == ['T = { "b"}', 'T = {"a", }']
    assert sorted(made('T = {"a": x, "b": y}')) == ['T = { "b": y}', 'T = {"a": x, }']
    assert within('x = ("a", "b")') == []


def test_what_type_checkers_alone_see_is_left_as_it_is() -> None:
    assert made('if TYPE_CHECKING:\n    x = 1\n__all__ = ["a", "b"]\n') == []


def test_places_are_right_after_letters_of_several_bytes() -> None:
    found = made('x = "ä€😀" + y < z')
    assert found == ['x = "ä€😀" + y <= z', 'x = "ä€😀" - y < z']


def test_a_mutant_says_its_line_and_the_function_around_it() -> None:
    source = "class A:\n    def f(self):\n        return self.x\n"
    [mutant] = mutants_of("_flow/m", source)
    assert mutant.key == ("_flow/m", "A.f", "return self.x", "return None")
    assert str(mutant) == "_flow/m:3  return self.x  →  return None"


def test_every_mutant_of_a_module_is_another_text_that_python_compiles() -> None:
    source = (PACKAGE / "_policy.py").read_text(encoding="utf-8")
    texts = made(source)
    assert len(texts) > 100
    assert len({source, *texts}) == len(texts) + 1
    for text in texts[::10]:
        compile(text, "_policy", "exec")


def test_a_sample_stays_nearly_the_same_when_another_line_is_added() -> None:
    source = "".join(f"x{n} = a < {n}\n" for n in range(50))
    before = in_order(mutants_of("m", source), 1)
    after = in_order(mutants_of("m", "y = 7\n" + source), 1)
    assert [m.key for m in after if m.line != "y = 7"] == [m.key for m in before]
    assert before != in_order(mutants_of("m", source), 2)


def test_the_modules_are_those_that_decide() -> None:
    assert set(UNITS) == set(PURE)
    assert set(WAITING) == {f"_flow/{name}" for name in FLOW_EDGES}
    for name in (*BULK, *WAITING):
        assert (PACKAGE / f"{name}.py").exists()
    assert is_pure("dialects/v1")
    assert not is_pure("bulk/_job")
    assert not is_pure("_flow/limiter")


def test_the_tests_that_are_to_notice_are_there() -> None:
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if is_pure(module):
            for stage in stages_of(module):
                for name in stage:
                    assert (TESTS / name).exists(), f"{module}: {name}"


def test_the_list_of_equivalents_has_a_reason_for_each_and_names_modules_that_are_there() -> None:
    for module, *_ in equivalents(LISTED).reasons:
        assert is_pure(module)
        assert (PACKAGE / f"{module}.py").exists(), module


def entry(reason: str) -> str:
    return (
        '[[equivalent]]\nmodule = "m"\nwithin = ""\nline = "x = 1"\nbecomes = "x = 2"\n'
        f'reason = "{reason}"\n'
    )


def test_an_entry_is_found_by_the_lines_text_and_is_left_over_when_the_line_is_gone() -> None:
    listed = equivalents(entry("nobody reads it"))
    [mutant] = mutants_of("m", "\n\n\nx = 1\n")
    assert mutant in listed
    assert listed.left_over([mutant]) == []
    assert listed.left_over(mutants_of("m", "x = 3\n")) == [("m", "", "x = 1", "x = 2")]


@pytest.mark.parametrize(
    ("listed", "problem"),
    [(entry(" "), "no reason"), (entry("a") + entry("b"), "listed twice")],
)
def test_an_entry_without_a_reason_or_a_second_one_is_refused(listed: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        equivalents(listed)


def test_what_hangs_is_killed_and_what_is_equivalent_is_not_counted() -> None:
    fates: list[Fate] = ["killed", "hung", "survived", "equivalent", "killed"]
    assert share(fates) == 0.75
    assert share([]) == share(["equivalent"]) == 1.0


def test_the_table_has_a_line_for_each_module_and_one_for_all() -> None:
    one, two = (Mutant(module, "", "a", "b", 1, ()) for module in ("one", "_two"))
    results: list[tuple[Mutant, Fate]] = [
        (one, "killed"),
        (one, "hung"),
        (two, "survived"),
        (two, "equivalent"),
    ]
    assert table(results) == "\n".join(
        [
            "module  made  killed  survived  equivalent  killed",
            "_two       2       0         1           1    0.0%",
            "one        2       2         0           0  100.0%",
            "all        4       2         1           1   66.7%",
        ]
    )
