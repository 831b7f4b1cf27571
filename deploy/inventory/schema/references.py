"""
Names of hosts and secrets that a fleet file uses, and those that it does not define.  Pure.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from deploy.inventory.names import SECRET


def dangling_names(
    groups: Mapping[str, Iterable[object]],
    hosts: Iterable[str],
    references: Iterable[tuple[tuple[str | int, ...], str]],
    secrets: Iterable[str],
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """
    Yield (key path, problem) for each reference to a host or secret that is not defined.
    """
    hosts, secrets = set(hosts), set(secrets)
    for name, members in groups.items():
        for index, host in enumerate(members):
            if host not in hosts:
                yield ("groups", name, "hosts", index), f"no host is named {host!r}"
    for path, secret in references:
        if secret not in secrets:
            yield path, f"no secret is named {secret!r}"


def secret_references(data: object) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """
    Yield (key path, name) for each use of a secret in *data*, a fleet file that may be invalid.
    """
    tokens = "service", "api_tokens"
    for index, name in enumerate(_list_at(data, tokens)):
        if isinstance(name, str):
            yield (*tokens, index), name
    notify = "release", "notify"
    for index, webhook in enumerate(_list_at(data, notify)):
        url = webhook.get("webhook") if isinstance(webhook, Mapping) else None
        if isinstance(url, str) and re.fullmatch(SECRET.regex, url):
            yield (*notify, index, "webhook"), url
        for number, header in enumerate(_list_at(webhook, ("headers",))):
            name = header.get("secret") if isinstance(header, Mapping) else None
            if isinstance(name, str):
                yield (*notify, index, "headers", number, "secret"), name
    state = data.get("state") if isinstance(data, Mapping) else None
    password = state.get("password") if isinstance(state, Mapping) else None
    if isinstance(password, str):
        yield ("state", "password"), password


def _list_at(data: object, path: tuple[str, ...]) -> Sequence[object]:
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, list | tuple) else ()
