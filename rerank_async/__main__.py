"""`rerank-async` and `python -m rerank_async`: finds the command line, or says what it needs."""

import sys

from rerank_async._program import INTERRUPTED, raise_again

__all__ = ["main"]


def main() -> int:
    """Run the command line; without the `[cli]` extra, say so in one line and return 2.

    Ctrl-C ends it with 130 and without a traceback, however early it comes.
    """
    try:
        return _run()
    except KeyboardInterrupt:
        return INTERRUPTED


def _run() -> int:
    try:
        from rerank_async._cli import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print('the command line needs: pip install "rerank-async[cli]"', file=sys.stderr)
        return 2
    raise_again()
    return run()


if __name__ == "__main__":
    sys.exit(main())
