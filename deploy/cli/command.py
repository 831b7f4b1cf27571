"""
The decorator of every task.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from invoke.tasks import task

from deploy.cli.boundary import error_boundary


def command(
    *, flags: Mapping[str, str] | None = None, positional: tuple[str, ...] = (), name: str = ""
) -> Callable[[Callable[..., Any]], Any]:
    """
    Return a decorator that makes an invoke task of a function, with the error boundary around it.

    Args:
        flags: Help of each flag: meaning, unit, default.
        positional: Parameters that need no flag.
        name: Name of the task where it is not that of the function.
    """

    def decorate(body: Callable[..., Any]) -> Any:
        @functools.wraps(body)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            as_json, as_line = bool(kwargs.get("json")), bool(kwargs.get("watch"))
            with error_boundary(as_json=as_json, as_line=as_line):
                return body(*args, **kwargs)

        more: dict[str, Any] = {"positional": list(positional)} if positional else {}
        if name:
            more["name"] = name
        return task(help=dict(flags or {}), auto_shortflags=False, **more)(guarded)

    return decorate
