"""
The check of a client's grammar: everything that an engine does with it, once.
"""

import numpy as np

from runtime.structured.compiler import GrammarCompiler, translate
from runtime.structured.errors import GrammarError
from runtime.structured.grammar import GrammarKind
from runtime.structured.limits import PROBED_TOKENS


def check(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> str:
    """
    Return the grammar as `translate` does, after its first tokens were computed.

    Raises:
        GrammarError: It can't be compiled, matches no text, or takes too much.
    """
    compiled = translate(kind, text)
    state = compiler.compile(compiled)
    for _ in range(PROBED_TOKENS):
        (mask,) = compiler.masks([state])
        if isinstance(mask, GrammarError):
            if state.accepted:
                raise mask
            raise GrammarError(f"it matches no text, or is too complex: {mask}")
        if mask.is_empty:
            if mask.may_end:
                break
            raise GrammarError("it allows no token of this model")
        state.accept([_first(mask.words)])
        if state.is_complete:
            break
    return compiled


def _first(words: bytes) -> int:
    """
    Return the lowest token id that is allowed.
    """
    bits = np.unpackbits(np.frombuffer(words, dtype=np.uint8), bitorder="little")
    return int(bits.argmax())
