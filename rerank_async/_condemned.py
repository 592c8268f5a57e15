"""What a status and the words beside it say of other requests: how far a refusal reaches.

The words are strangers' and only looked at for what is known to be said; what says nothing known is
about the one request.
A line belongs here when it says what a server's refusal condemns; see `RerankError`.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

__all__ = ["Condemned", "condemned", "condemned_by_words"]

Condemned: TypeAlias = Literal["request", "model", "session"]

# The key, the account, the path, the form of requests or the way to the server is the reason: the
# session's, all of them. 511 is a captive portal's.
_OF_THE_SESSION = frozenset({401, 402, 405, 406, 407, 411, 414, 415, 421, 426, 431, 501, 505, 511})
# What passes by itself.
_OF_THE_MOMENT = frozenset({408, 425, 429})

# A status that means "not here" or "not for you", and a word for a model that is no part of a path.
_NAMES_A_MODEL = re.compile(r"(?<![/\w.-])models?\b(?!/)", re.IGNORECASE)
# Any other refusal condemns a model by its code or its field alone: its words may quote a document.
_MODEL_CODE = re.compile(
    r"model.?(?:not|un|in(?!put)|access|denied|deprecated|forbidden|permission)"
    r"|(?:unknown|invalid|unsupported|no.?such).?model",
    re.IGNORECASE,
)

# A 403 about what the texts say. Moderators speak of the model that asks for them as well.
_OF_THE_TEXTS = re.compile(
    r"content.?(?:filter|polic|safety|moderat|violat)|guardrail|data.?inspection|\bmoderation\b"
    r"|\bwaf\b|firewall"
    r"|\b(?:input|prompt|content|text|document|query)s?\b.{0,40}(?:flagged|blocked|inappropriate)"
    r"|(?:inappropriate|prohibited|harmful|unsafe|sensitive) (?:\w+ )?"
    r"(?:input|prompt|content|text|document)",
    re.IGNORECASE,
)

# A quota that is used up and does not come back by itself within a job's patience.
_USED_UP_CODE = re.compile(
    r"insufficient.?(?:quota|balance|credit|fund)|billing|budget.?exceeded|payment.?required"
    r"|arrear|exceeded.?current.?quota|free.?tier.?only|out.?of.?credit|no.?credit",
    re.IGNORECASE,
)
_USED_UP = re.compile(
    r"insufficient (?:quota|balance|credits?|funds)|\bbilling\b|\barrear|good standing"
    r"|(?:out of|no more|not enough|more|used (?:up )?all(?: of)?) (?:\w+ ){0,3}credits?\b"
    r"|\bcredits?\b.{0,40}(?:exhausted|used up|depleted|too low|exceeded|run out|ran out)"
    r"|(?:budget|spend\w* (?:limit|cap)|allowance)\b.{0,40}(?:exceed|reach|used up|exhaust)"
    r"|(?:exceed|reach)\w*.{0,40}\b(?:budget|spend\w* (?:limit|cap))"
    r"|\bquota\b.{0,40}(?:exceeded|used up|exhausted|reached|depleted|consumed)"
    r"|(?:exceed\w*|out of|over|used up|exhausted|reached) (?:\w+ ){0,4}quota\b"
    r"|(?:month|day)\w* (?:\w+ )?limit|(?:per|/|a|this|the|for the) ?(?:month|day)\b"
    r"|\b(?:monthly|daily)\b.{0,30}(?:exceed|reach|used up|exhaust)",
    re.IGNORECASE,
)
# What is counted by the minute or at once, and what the server says will be over, comes back.
_COMES_BACK = re.compile(
    r"(?:per|/|a|each|every) ?(?:second|sec|minute|min|hour)\b|\b[rtq]p[sm]\b|throttl"
    r"|concurren|parallel|capacity|temporar|\bmoment|right now"
    r"|(?:try again|retry|wait|replenish\w*|reset\w*) (?:\w+ )?(?:in|after|for) \d",
    re.IGNORECASE,
)


def condemned(
    status: int, message: str, code: str | None, param: str | None, retry_after: float | None
) -> Condemned | None:
    """How much would be answered in the same way; None where nothing would.

    Args:
        status: the HTTP status code, not 200.
        message: the server's words for a person.
        code: the server's code for it, or None.
        param: the field of the request that it names, or None.
        retry_after: seconds to wait by its own word, or None.
    """
    code = code or ""
    if _is_used_up(status, message, code, retry_after):
        return "session"
    if status in _OF_THE_MOMENT:
        return None
    if status >= 500:
        return "session" if status in _OF_THE_SESSION else None
    if 300 <= status < 400:
        return "session"
    is_about_model = _MODEL_CODE.search(code) is not None or (
        param is not None and param.rpartition(".")[2] == "model"
    )
    # An HTML page is a router's, a proxy's or a firewall's, and speaks of no model.
    is_page = message.startswith("<")
    if status == 403 and _OF_THE_TEXTS.search(f"{code} {message}"):
        return "request"
    if status in (403, 404, 410):
        if not is_page and (is_about_model or _NAMES_A_MODEL.search(message)):
            return "model"
        # A firewall refuses what a request contains.
        return "request" if is_page and status == 403 else "session"
    if status in _OF_THE_SESSION:
        return "session"
    return "model" if is_about_model else "request"


def condemned_by_words(message: str, code: str | None, param: str | None) -> Condemned | None:
    """How much an error condemns whose status says nothing, such as one that comes with 200."""
    what = condemned(400, message, code, param, None)
    return condemned(429, message, code, param, None) if what == "request" else what


def _is_used_up(status: int, message: str, code: str, retry_after: float | None) -> bool:
    """Whether a quota is used up, and not only for this minute."""
    if status not in (400, 402, 403, 429):
        return False
    if _USED_UP_CODE.search(code):
        return True
    return (
        status != 400
        # With a hint, the server itself says when to come back.
        and retry_after is None
        and _USED_UP.search(message) is not None
        and not _COMES_BACK.search(f"{code} {message}")
    )
