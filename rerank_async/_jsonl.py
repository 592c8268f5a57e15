"""What is wrong with a line of JSON, in plain words. Pure.

Lines that are right are read by faster means; this is for those that were refused.
A line belongs here when it holds for JSON lines of whatever content.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

__all__ = ["json_kind", "parsed_json"]


def parsed_json(line: bytes) -> Any:
    """The value of a JSON line, checked throughout.

    Raises:
        ValueError: it is not JSON, or holds what no text can; the message says which.
    """
    try:
        value = json.loads(line.decode(), parse_constant=_refuse_constant)
        # Python reads half a pair of surrogates from its escape, which nobody can write.
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1})") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(
            f"it holds {half}, which is half a character: leave it out, or write the whole pair"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no number there")


def json_kind(value: object) -> str:
    """What a JSON value is, for messages: "a list", "true", "12.5"."""
    if isinstance(value, str):
        return "a string" if value else "an empty string"
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else "a number"
