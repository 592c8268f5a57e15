"""A response in; an answer that may be believed out, or the error that it means.

Nothing waits here. A line belongs here when it is about what a server sent back: whose key it
quotes, what its status means, and whose scores are whose where blank documents were left out.
"""

from __future__ import annotations

import time

from rerank_async._answers import Answer, check_answer
from rerank_async._chunking import Chunk
from rerank_async._errors import RerankError, ResponseError, error_for_status
from rerank_async._flow.hints import retry_after
from rerank_async._http import HttpResponse
from rerank_async._private import excerpt
from rerank_async._route import Route
from rerank_async.dialects import Dialect, error_message

__all__ = ["dropped", "receive"]


def receive(
    response: HttpResponse,
    *,
    route: Route,
    model: str,
    chunk: Chunk,
    top_n: int | None,
    partial: bool,
) -> Answer:
    """The answer that a response holds.

    Args:
        response: the response as it came.
        route: the server's dialect, and the key that must not be shown.
        model: the model that was asked for.
        chunk: the documents that were sent.
        top_n: the number of results that were asked for; None means all.
        partial: whether documents may go without a score.

    Raises:
        StatusError: the server refused or failed.
        ResponseError: the answer cannot be trusted; `omits_blanks` says that the documents beside
            the blank ones may be asked for without them.
    """
    # The body has no name here: a traceback that shows the values of names would show a key that
    # the server quotes.
    endpoint, sent = route.endpoint, len(chunk.documents)
    if response.status != 200:
        failure = route.dialect.classify(response.status, endpoint.redact(response.body))
        raise error_for_status(
            response.status,
            failure.message,
            endpoint.redact_headers(response.headers),
            retry_after(response.headers, time.time()),
            code=failure.code,
            param=failure.param,
            means=failure.means,
        )
    dialect = route.dialect
    try:
        answer = check_answer(dialect.decode_response(response.body), sent=sent, top_n=top_n)
    except RerankError:
        if not endpoint.is_quoted(response.body) and not chunk.has_blanks():
            raise
    except Exception:  # noqa: S110  # it is said below, where the key is taken out
        pass
    else:
        # Most servers name the model that they were asked for. It has no name here either.
        if (
            answer.model is None
            or answer.model == model
            or not endpoint.is_quoted(answer.model.encode())
        ):
            return answer
        del answer
    if top_n is None and (rest := _without_blanks(response, route, chunk, partial)) is not None:
        return rest
    # Once more without the key, so that what is wrong with it can be said as always.
    _decoded(dialect, endpoint.redact(response.body), sent, top_n)
    words = error_message(endpoint.redact(response.body))
    raise ResponseError(f"the answer quotes the API key: {words}")


def _decoded(dialect: Dialect, body: bytes, sent: int, top_n: int | None) -> Answer:
    """What an answer says, believed after its check: a dialect may be anybody's code."""
    try:
        return check_answer(dialect.decode_response(body), sent=sent, top_n=top_n)
    except RerankError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {excerpt(str(error).encode(errors='replace'))}"
    # Not up there: the error's frames hold the body.
    raise ResponseError(f"the dialect {dialect.name} could not read the answer: {what}")


def _without_blanks(
    response: HttpResponse, route: Route, chunk: Chunk, partial: bool
) -> Answer | None:
    """The answer to all but the blank documents, where it is certain that it is that.

    Some servers leave out blank documents, and some of those count the others anew: then an index
    is the place of another document. It is certain that they were not counted anew when the blank
    documents alone are absent, and a document after one of them is present.

    Returns:
        The answer where documents may go without a score; None where what is wrong is something
        else.

    Raises:
        ResponseError: blank documents were left out.
    """
    sent, blanks = len(chunk.documents), chunk.blanks()
    if not blanks:
        return None
    try:
        # As many as if the others were the best of all.
        answer = _decoded(route.dialect, response.body, sent, sent - len(blanks))
    except RerankError:
        return None
    if answer.model is not None and route.endpoint.is_quoted(answer.model.encode()):
        del answer
        return None
    if partial:
        absent = set(range(sent)).difference(answer.indices)
        if absent == set(blanks) and max(answer.indices, default=-1) > blanks[0]:
            return answer
    error = dropped(chunk, blanks[0])
    error.omits_blanks = partial
    raise error


def dropped(chunk: Chunk, place: int) -> ResponseError:
    """The error of a document that the server gave no score because it is blank."""
    error = ResponseError(
        f"the server gave no score to documents[{chunk.positions[place]}], which is blank: it "
        'leaves out blank documents; do so too, or pass on_failure="partial", which names them in '
        "missing"
    )
    error.final = True
    return error
