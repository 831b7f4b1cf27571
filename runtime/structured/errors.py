"""
Why an answer is not constrained.
"""


class GrammarError(Exception):
    """
    The grammar can't be compiled, takes too much, or matches no text; the client's request is at
    fault.
    """


class CheckFailed(Exception):
    """
    The process that checks grammars failed.  That says nothing about the grammar.
    """


class GrammarUnavailable(Exception):
    """
    No grammar can be used with this model.
    """
