"""The local server: the v1 exchange over an embedded engine, for any machine and no key.

    async with LocalServer() as server:
        session = RerankSession(server.url, model="lexical")

`_app` decides what an HTTP request is answered with, `_serve` carries it, `engines` score,
`_faults` says which answers are to fail. Nothing in here knows the client's session.
"""

from rerank_async.server._app import App
from rerank_async.server._faults import Faults
from rerank_async.server._serve import LocalServer

__all__ = ["App", "Faults", "LocalServer"]
