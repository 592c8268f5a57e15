"""A name means one thing in the package: no two modules define a function or class of one name."""

import ast
from collections import defaultdict
from pathlib import Path

import rerank_async

PACKAGE = Path(rerank_async.__file__).parent

# Names that several modules define because they mean the same there, each with the reason.
THE_SAME = {
    "main": "what a module does that is started with python -m",
}

# Names that still mean two things: each has to be changed in one of its modules; none may be added.
STILL_TWO: set[str] = set()


def defined(source: str) -> set[str]:
    """The functions and classes at the top of a module; typing's overloads are one function."""
    return {
        node.name
        for node in ast.parse(source).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }


def test_no_two_modules_define_a_function_or_class_of_one_name() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in defined(path.read_text(encoding="utf-8")):
            modules[name].append(path.relative_to(PACKAGE).as_posix())
    several = {name: where for name, where in modules.items() if len(where) > 1}
    assert set(several) == {*THE_SAME, *STILL_TWO}, several


def test_what_a_module_defines_at_its_top_is_found_and_methods_are_not() -> None:
    source = "class A:\n    def method(self): ...\nasync def b(): ...\ndef c():\n    def d(): ...\n"
    assert defined(source) == {"A", "b", "c"}
