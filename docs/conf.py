"""How the documentation is built: offline, from Markdown pages and the package's docstrings."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rerank_async import __version__

project = "rerank_async"
author = "The rerank_async maintainers"
copyright = "The rerank_async maintainers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"rerank_async {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False

myst_enable_extensions = ["deflist"]
# GitHub's own anchors, so that a link to a heading works there and here.
myst_heading_anchors = 3

# In docstrings one backtick means code.
default_role = "literal"
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
# Longer signatures get a line for each argument.
python_maximum_signature_line_length = 80
autodoc_typehints_format = "short"
# An attrs class names its fields under "Attributes:"; as members they would stand there twice.
napoleon_use_ivar = True
# Their types stand in the signature already.
napoleon_attr_annotations = False

nitpicky = True
nitpick_ignore_regex = [
    # Other people's names: their documentation is elsewhere, and a build needs no network.
    ("py:.*", r"(aiohttp|asyncio|attrs|collections|os|pathlib|ray|typing|types)\..*"),
    ("py:.*", r"(Any|AsyncGenerator|AsyncIterable|Callable|Iterable|Iterator|Mapping|Sequence)"),
    ("py:.*", r"(Condemned|EllipsisType|OnFailure|TracebackType)"),
]

# The public names are defined in private modules: a reference to the one is one to the other.
_PRIVATE = re.compile(r"rerank_async\.(?:(bulk|dialects|ray|server)\.)?_\w+\.(\w+)")


# Sphinx is not there where this file is type-checked: its objects are Any.
def _to_public_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Find what a type annotation names under the name that users import."""
    target = str(node.get("reftarget", ""))
    private = _PRIVATE.fullmatch(target)
    name = target.rpartition(".")[2] if private is None else private[2]
    python = env.domains.python_domain
    modules = (
        "",
        "bulk.",
        "dialects.",
        "events.",
        "otel.",
        "server.",
        "server.engines.",
        "testing.",
        "trec.",
    )
    for public in (*(f"rerank_async.{module}{name}" for module in modules), name):
        if public in python.objects:
            return python.resolve_xref(
                env, str(node["refdoc"]), app.builder, "obj", public, node, content
            )
    return None


def setup(app: Any) -> None:
    app.connect("missing-reference", _to_public_name)
