"""
The same work on several hosts at once; an error of one host is that host's alone.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from deploy.errors import DeployError


def on_each(hosts: Iterable[str], work: Callable[[str], None]) -> dict[str, DeployError]:
    """
    Run *work* for all *hosts* at once; return the errors by host.

    An exception that is no DeployError is our bug: it becomes an error of its host, with the
    exception as cause, so that the other hosts' work still ends.
    """
    errors: dict[str, DeployError] = {}

    def one(host: str) -> None:
        try:
            work(host)
        except DeployError as error:
            errors[host] = error
        except Exception as error:
            errors[host] = unexpected(host, error)

    names = list(hosts)
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        list(pool.map(one, names))
    return errors


def unexpected(host: str, error: Exception) -> DeployError:
    """
    Return *error*, which the toolkit did not foresee, as an error of *host*.
    """
    internal = DeployError(
        f"{host}: an internal error of slipway",
        why=repr(error),
        fix="report it with the traceback that --debug prints",
        host=host,
    )
    internal.__cause__ = error
    return internal
