"""A command is a function of one value, and typer sees a parameter for each of its fields."""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec import Struct
from typer.testing import CliRunner

from rerank_async._cli._options import ModelOption, UrlOption, takes


class Asked(Struct, frozen=True):
    """What was asked of a command that there is only here."""

    file: Annotated[str, typer.Argument(help="The documents.")]
    url: UrlOption = None
    model: ModelOption = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
    top_n: Annotated[int | None, typer.Option(min=1, help="How many.")] = None


def program(heard: list[Asked]) -> typer.Typer:
    app = typer.Typer(add_completion=False)

    @app.command()
    @takes(Asked)
    def look(asked: Asked) -> None:
        """Look at a file."""
        heard.append(asked)

    return app


def told(*arguments: str) -> tuple[int, list[Asked]]:
    heard: list[Asked] = []
    result = CliRunner().invoke(program(heard), arguments)
    return result.exit_code, heard


def test_what_is_given_becomes_one_value_and_the_rest_has_its_defaults() -> None:
    assert told("a.txt", "--json", "--top-n", "3", "--url", "http://a/v1") == (
        0,
        [Asked("a.txt", url="http://a/v1", as_json=True, top_n=3)],
    )
    assert told("a.txt") == (0, [Asked("a.txt")])


def test_typer_checks_the_fields_as_it_checks_parameters() -> None:
    assert told("a.txt", "--top-n", "0") == (2, [])
    assert told("a.txt", "--top-n", "many") == (2, [])
    assert told() == (2, [])


def test_help_shows_the_function_s_docstring_and_the_options_in_the_order_of_the_fields() -> None:
    shown = CliRunner().invoke(program([]), ["--help"], env={"COLUMNS": "100"}).stdout
    places = [shown.index(word) for word in ("Look at a file.", "--url", "--model", "--json")]
    assert places == sorted(places)
    assert shown.index("--json") < shown.index("--top-n")
