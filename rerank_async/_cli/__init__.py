"""The command line: `rerank-async rerank | bulk | bench | eval | serve | demo`.

typer reads it, rich shows it.
Each command is a module of its own; what several of them need is in `_shared`.
Standard output carries results, standard error everything else.
A line belongs here when it says which commands there are.
"""

from __future__ import annotations

from rerank_async._cli import bench, bulk, demo, evaluate, rerank, serve
from rerank_async._cli._shared import app, run

__all__ = ["run"]

# In the order in which --help lists them. These modules are imported whatever the command, so what
# only one of them needs, and is slow to import (`benchmarks/importing.py`), is imported inside its
# function.
app.command(epilog=rerank.EXAMPLE)(rerank.rerank)
app.command(epilog=bulk.EXAMPLE)(bulk.bulk)
app.command(epilog=bench.EXAMPLE)(bench.bench)
app.command("eval", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command(epilog=serve.EXAMPLE)(serve.serve)
app.command(epilog=demo.EXAMPLE)(demo.demo)
