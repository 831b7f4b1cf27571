"""
Asks before hosts are changed.
"""

import sys
from collections.abc import Collection

from deploy.cli.terminal import print_progress, print_question
from deploy.errors import UsageError
from deploy.foreign_text import visible


def confirm(question: str, *, yes: bool) -> None:
    """
    Ask on a terminal; elsewhere insist on `--yes`.

    Raises:
        UsageError: The answer is not yes (^D included), or nobody can answer.
    """
    if yes:
        return
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
        raise UsageError(
            "this changes hosts, and nobody is there to ask",
            why="neither --yes was given nor is this a terminal",
            fix="add --yes",
        )
    print_question(question)
    try:
        answer = input()
    except EOFError:  # ^D
        print_progress("")
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise UsageError("not confirmed", why="the answer was not yes", fix="nothing was changed")


def confirm_takeover(owners: Collection[str], question: str, *, yes: bool) -> None:
    """
    Ask like `confirm`, and name the operators whose work would end.
    """
    names = ", ".join(visible(owner) for owner in owners)
    taken = f"this takes over from {names}, who is at work; " if names else ""
    confirm(f"{taken}{question}", yes=yes)


def _is_terminal(stream: object) -> bool:
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())
