"""
How a request that failed in the engine is refused.
"""

from runtime.engines.base.protocol import FinishReason
from runtime.server.admission import Refusal

# A repeated request would use its whole time again, or end another engine.
NEVER_REPEATED = frozenset({FinishReason.EXPIRED, FinishReason.DIED})
FAILURES = {
    FinishReason.EXPIRED: (504, "deadline_exceeded", "the deadline passed"),
    FinishReason.NONFINITE: (500, "engine_nonfinite", "the model's logits are not finite"),
    FinishReason.GRAMMAR: (400, "grammar_refused", "the grammar of the answer can't be used"),
    FinishReason.ERROR: (500, "engine_error", "the model failed"),
    # Not a 500: HAProxy repeats that on the other slot, whose engine the request could end too.
    FinishReason.DIED: (502, "engine_died", "the engine process ended"),
    FinishReason.ABANDONED: (
        503,
        "shutting_down",
        "the runtime shut down before the answer was complete",
    ),
}


def failure(reason: FinishReason, detail: str, excuse: str | None = None) -> Refusal:
    """
    Return the answer to a request that ended in the engine for *reason*.
    """
    status, code, message = FAILURES[reason]
    return Refusal(
        status,
        code,
        f"{message}: {detail}" if detail else message,
        excuse=excuse,
        never_repeat=reason in NEVER_REPEATED,
    )
