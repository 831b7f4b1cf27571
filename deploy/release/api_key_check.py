"""
Refuses to start a slot where it would accept every request, though the fleet has API keys.
"""

from collections.abc import Iterable, Mapping

from deploy.errors import PreconditionError
from deploy.release.observe import Observed


def check_api_keys(started: Iterable[str], seen: Mapping[str, Observed]) -> None:
    """
    Refuse hosts of *started* that have no list of API keys while another host of *seen* has one.

    Raises:
        PreconditionError: Names all of them; no host was touched.
    """
    having = [name for name, current in seen.items() if current.keys is not None]
    damaged = [name for name in started if seen[name].keys_damage is not None]
    without = [name for name in started if seen[name].keys is None and name not in damaged]
    if not having or not (damaged or without):
        return
    told = [f"{name} has no list" for name in without]
    told += [f"the list of {name} is damaged" for name in damaged]
    raise PreconditionError(
        f"{', '.join([*without, *damaged])}: no API keys",
        why=f"{', '.join(told)}, while {having[0]} has one; without a list, a slot may accept "
        "every request",
        fix="inv keys.sync; it names what it cannot settle",
    )
