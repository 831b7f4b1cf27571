"""
`inv status --watch`: the state of a fleet again and again.
"""

import sys
from collections.abc import Callable
from typing import Any

from deploy.cli.terminal import Result, print_json, print_text, redraw

EVERY_S = 1.0


def watch(
    read: Callable[[], tuple[dict[str, Any], Result]],
    *,
    as_json: bool,
    sleep: Callable[[float], None],
) -> None:
    """
    Show what *read* returns every second, until interrupted.

    Args:
        read: Returns the document and the table of one moment.
        as_json: Print each document as one line; else a table that is redrawn on a terminal, and
            elsewhere printed when it changed.
    """
    if as_json:
        while True:
            print_json(read()[0], as_line=True)
            sleep(EVERY_S)
    last: dict[str, Any] | None = None
    while True:
        document, table = read()
        if sys.stdout.isatty():
            redraw(table)
        elif document != last:
            print_text(table)
        last = document
        sleep(EVERY_S)
