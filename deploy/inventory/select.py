"""
Which hosts of a fleet does `--limit` mean?  Pure.
"""

import difflib
from fnmatch import fnmatchcase

from deploy.errors import UnknownHost
from deploy.inventory.schema import Fleet, Host


def select_hosts(fleet: Fleet, limit: str | None) -> Fleet:
    """
    Return *fleet* with the hosts that *limit* selects, in the order of the file.

    Args:
        limit: Terms between commas, each a host ("n1"), a pattern ("gpu-0*") or a group
            ("@canary"). None is every host; an empty text is none, never all.

    Raises:
        UnknownHost: A term matches nothing.
    """
    if limit is None:
        return fleet
    terms = [term.strip() for term in limit.split(",")]
    chosen = {host.name for term in terms for host in _matching(fleet, term)}
    return fleet.model_copy(
        update={"hosts": tuple(host for host in fleet.hosts if host.name in chosen)}
    )


def _matching(fleet: Fleet, term: str) -> list[Host]:
    if term.startswith("@"):
        found = [host for host in fleet.hosts if term[1:] in host.groups]
    else:
        found = [host for host in fleet.hosts if fnmatchcase(host.name, term)]
    if not found:
        raise _nothing_matches(fleet, term)
    return found


def _nothing_matches(fleet: Fleet, term: str) -> UnknownHost:
    hosts = [host.name for host in fleet.hosts]
    groups = sorted({f"@{group}" for host in fleet.hosts for group in host.groups})
    near = difflib.get_close_matches(term, [*hosts, *groups, *(g[1:] for g in groups)], n=1)
    if near and near[0] not in hosts and not near[0].startswith("@"):
        near = [f"@{near[0]}"]
    kind = "group" if term.startswith("@") else "host"
    return UnknownHost(
        f"{fleet.name}: no {kind} matches {term!r}",
        why=f"the fleet has {', '.join([*hosts, *groups])}",
        fix=f"did you mean {near[0]}?" if near else "name hosts, patterns or @groups of the fleet",
    )
