"""
Selection of hosts by `--limit`.  Pure.
"""

import difflib
from fnmatch import fnmatchcase

from deploy.errors import UnknownHost
from deploy.inventory.schema import Fleet, Host


def select_hosts(fleet: Fleet, limit: str | None) -> Fleet:
    """
    Return *fleet* with only the hosts that *limit* selects, in the order of the file.

    Args:
        limit: Terms separated by commas: a host ("n1"), a pattern ("gpu-0*") or a group
            ("@canary").  None selects all hosts; an empty term is an error.

    Raises:
        UnknownHost: A term matches no host.
    """
    if limit is None:
        return fleet
    terms = [term.strip() for term in limit.split(",")]
    selected = {host.name for term in terms for host in _matching(fleet, term)}
    chosen = tuple(host for host in fleet.hosts if host.name in selected)
    return fleet.model_copy(update={"hosts": chosen, "others": fleet.without(selected)})


def _matching(fleet: Fleet, term: str) -> list[Host]:
    if term.startswith("@"):
        matches = [host for host in fleet.hosts if term[1:] in host.groups]
    else:
        matches = [host for host in fleet.hosts if fnmatchcase(host.name, term)]
    if not matches:
        raise _no_match(fleet, term)
    return matches


def _no_match(fleet: Fleet, term: str) -> UnknownHost:
    hosts = [host.name for host in fleet.hosts]
    groups = sorted({f"@{group}" for host in fleet.hosts for group in host.groups})
    similar = difflib.get_close_matches(term, [*hosts, *groups, *(g[1:] for g in groups)], n=1)
    if similar and similar[0] not in hosts and not similar[0].startswith("@"):
        similar = [f"@{similar[0]}"]
    kind = "group" if term.startswith("@") else "host"
    return UnknownHost(
        f"{fleet.name}: no {kind} matches {term!r}",
        why=f"the fleet has {', '.join([*hosts, *groups])}",
        fix=f"did you mean {similar[0]}?"
        if similar
        else "give hosts, patterns or @groups of the fleet",
    )
