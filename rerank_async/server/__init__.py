"""The local server: the v1 exchange over an embedded engine, for any machine and no key.

    async with LocalServer() as server:
        session = RerankSession(server.url, model="lexical")

`_app` decides what an HTTP request is answered with, `_bodies` takes its body, `_places` says who
may stay connected; they are pure. `_connections` is aiohttp's side of a connection, `_listening`
the addresses, `_scorers` the processes and threads that score, and `_serve` connects them.
`engines` score, `_faults` says which answers are to fail, `_limits` what is put up with.
Nothing in here knows the client's session.
"""

from rerank_async.server._app import App
from rerank_async.server._bodies import Body
from rerank_async.server._faults import Faults
from rerank_async.server._limits import Limits
from rerank_async.server._serve import LocalServer

__all__ = ["App", "Body", "Faults", "Limits", "LocalServer"]
