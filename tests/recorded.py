"""
JSON documents and help texts as the command line gave them before it moved, and how to compare.

`tests/recordings` was written by `inv` on four lab hosts; times, ids, digests, counts and paths are
normalised, and lists hold one element of each kind.
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "recordings"
# Their keys are data: hosts, versions, lines of work.
MAPPINGS = {
    "commands", "commands_per_host", "hosts", "errors", "user_errors", "requests_by_version",
    "share_pct", "systems", "lines",
}  # fmt: skip


def recorded(name):
    """
    Return the document of tests/recordings/json/NAME.json.
    """
    return json.loads((FOLDER / "json" / f"{name}.json").read_text())


def recorded_help(name):
    return (FOLDER / "help" / f"{name}.txt").read_text()


def differences(before, now, where="$"):
    """
    Return where *now* has not the keys and types of *before*, as sorted lines.
    """
    return sorted(set(_differences(before, now, where)))


def _differences(before, now, where):
    if isinstance(before, dict) and isinstance(now, dict):
        if where.rpartition(".")[2] in MAPPINGS:
            before, now = _values(before), _values(now)
        else:
            yield from (f"{where}.{key}: gone" for key in before.keys() - now.keys())
            yield from (f"{where}.{key}: new" for key in now.keys() - before.keys())
            for key in before.keys() & now.keys():
                yield from _differences(before[key], now[key], f"{where}.{key}")
            return
    if isinstance(before, list) and isinstance(now, list):
        yield from _list_differences(before, now, where)
    elif _kind(before) != _kind(now):
        yield f"{where}: {_kind(before)} is {_kind(now)} now"


def _list_differences(before, now, where):
    """
    Every element has to be like one of *before*, and every one of *before* has to have one.
    """
    pairs = [(b, n) for b in before for n in now]
    alike = [(b, n) for b, n in pairs if not list(_differences(b, n, f"{where}[]"))]
    for value in before:
        if not any(b is value for b, _ in alike):
            yield from _nearest(value, now, where, swap=False)
    for value in now:
        if before and not any(n is value for _, n in alike):
            yield from _nearest(value, before, where, swap=True)


def _nearest(value, others, where, *, swap):
    found = [
        list(_differences(*((other, value) if swap else (value, other)), f"{where}[]"))
        for other in others
    ]
    yield from min(found, key=len, default=[f"{where}[]: gone"])


def _values(mapping):
    return list(mapping.values())


def _kind(value):
    if value is None or isinstance(value, bool):
        return str(type(value).__name__)
    return "number" if isinstance(value, int | float) else type(value).__name__
