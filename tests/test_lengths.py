"""No function of the package is longer than a screen, so that each can be read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import rerank_async

PACKAGE = Path(rerank_async.__file__).parent
# Lines from `def` to the function's last line, its docstring included.
LONGEST = 80


def longer(source: str, lines: int) -> Iterator[str]:
    """The names of the functions and methods that have more lines than that."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno >= lines:
                yield node.name


def test_no_function_is_longer_than_a_screen() -> None:
    found = {
        f"{path.relative_to(PACKAGE).as_posix()}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in longer(path.read_text(encoding="utf-8"), LONGEST)
    }
    assert found == set()


def test_lines_are_counted_from_def_to_the_end() -> None:
    of_three = "@cached\ndef short():\n    '''A docstring.'''\n    return 1\n"
    assert not list(longer(of_three, 3))
    assert list(longer(of_three, 2)) == ["short"]
    inner = "class A:\n    async def method(self):\n        def inner():\n            return 1\n"
    assert list(longer(inner, 2)) == ["method"]
