"""
Bounds of a grammar: when it is checked, and with each token.  And the messages between the API and
the process that checks.

Measured with 128,000 tokens and grammars that are meant to explode: docs/decisions/grammars.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """
    Attributes:
        cpu_s: CPU time of one check, in a process of its own that ends then.
        wait_s: Time after which the checking process is replaced although it used less.
        start_wait_s: The same while it reads the tokenizer.
        memory_bytes: That a check may take beside the tokenizer.
        kept: Grammars that passed, and refusals, that are remembered.
    """

    cpu_s: float = 1.0
    wait_s: float = 20.0
    start_wait_s: float = 60.0
    memory_bytes: int = 256 << 20
    kept: int = 128


@dataclass(frozen=True, slots=True)
class ParserLimits:
    """
    The names are llguidance's.  One of its units of fuel takes 20 ns when a grammar is compiled,
    and 70 ns when a mask is computed; an item takes 50 ns, a state of the lexer 1 to 2 kB.
    """

    initial_lexer_fuel: int = 1_000_000
    max_grammar_size: int = 100_000
    max_items_in_row: int = 2_000
    max_lexer_states: int = 20_000
    step_lexer_fuel: int = 100_000
    step_max_items: int = 20_000


PROBED_TOKENS = 8  # of an answer, when a grammar is checked
KEPT_GRAMMARS = 32  # compiled ones that an engine keeps

# First byte of an answer; its text follows.  FAILED says nothing about the grammar.
READY, CHECKED, REFUSED, LIMIT, FAILED, UNAVAILABLE = b"R", b"C", b"N", b"L", b"F", b"U"
