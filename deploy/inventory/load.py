"""
From `inventories/NAME.yml` to a `Fleet`, with everything that is wrong with the file in one error.
"""

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from deploy.errors import InventoryError
from deploy.inventory.document import Document, Problem, format_path, parse_document
from deploy.inventory.schema import (
    Fleet,
    FleetFile,
    Group,
    Host,
    HostEntry,
    Secret,
    Signing,
    Ssh,
    dangling_names,
)
from deploy.inventory.select import select_hosts
from deploy.inventory.validation_messages import nearest, problems_of

_FOLDER = "inventories"
_REFERENCE = "inventories/example.yml"


def load_fleet(
    name: str,
    *,
    root: Path,
    limit: str | None = None,
    known_rows: Collection[str] | None = None,
) -> Fleet:
    """
    Return the fleet called *name*, or the hosts of it that *limit* selects.

    Args:
        name: NAME of `inventories/NAME.yml`, or a path that ends in .yml.
        root: The repository; relative paths, also those inside the file, start from it.
        limit: See `select_hosts`; None is every host.
        known_rows: Names of the version matrix, to check `row` against; None checks nothing.

    Raises:
        InventoryError: The file is missing, unreadable or wrong; lists every problem found.
        UnknownHost: *limit* names something that the fleet does not have.
    """
    root = root.absolute()
    path = _find(name, root)
    shown = _shown(path, root)
    document = parse_document(_read(path, shown))
    found, refusals = _validate(document)
    problems = [*document.problems, *refusals]
    if found is None:
        raise _refused(shown, problems, document)
    hosts = tuple(_hosts(found, root))
    problems += [*_disagreements(found, document), *_twins(hosts, document)]
    if known_rows is not None:
        problems += _unknown_rows(found, document, known_rows)
    if problems:
        raise _refused(shown, problems, document)
    fleet = Fleet(
        name=path.stem,
        path=path,
        hosts=hosts,
        mirrors=found.mirrors,
        secrets={key: _placed_secret(value, root) for key, value in found.secrets.items()},
        service=found.service,
        release=found.release,
        signing=_placed_signing(found.signing, root),
    )
    return select_hosts(fleet, limit)


def fleet_names(root: Path) -> list[str]:
    """
    Return the names that `load_fleet` finds under *root*, sorted.
    """
    return sorted(path.stem for path in (root / _FOLDER).glob("*.yml"))


def _find(name: str, root: Path) -> Path:
    if name.endswith(".yml"):
        path = root / Path(name).expanduser()
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise InventoryError(
                f"{name}: no such fleet file",
                why=f"{path} {what}",
                fix="give the path of a fleet file, or a name: " + ", ".join(fleet_names(root)),
            )
        return path
    path = root / _FOLDER / f"{name}.yml"
    if not path.is_file() or Path(name).name != name:
        names = fleet_names(root)
        near = difflib.get_close_matches(name, names, n=1)
        raise InventoryError(
            f"no fleet is named {name!r}",
            why=f"{_FOLDER}/ holds: {', '.join(names) or 'nothing'}",
            fix=f"did you mean {near[0]}?" if near else "name one of these, or a path to a .yml",
        )
    return path


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _read(path: Path, shown: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InventoryError(
            f"{shown}: is not UTF-8 text",
            why=f"byte {error.start} is {error.object[error.start]:#04x}",
            fix=f"save {shown} as UTF-8",
        ) from None
    except OSError as error:
        raise InventoryError(
            f"{shown}: can't be read",
            why=str(error.strerror),
            fix=f"make {shown} readable for the user who runs this",
        ) from error


def _validate(document: Document) -> tuple[FleetFile | None, list[Problem]]:
    if document.data is None and document.problems:
        return None, []
    if not isinstance(document.data, dict):
        return None, [Problem((), "should be a mapping of keys, such as `hosts:`", 1)]
    try:
        # As JSON and strict: a list may stand for a tuple, but "5" and true are no numbers.
        return FleetFile.model_validate_json(json.dumps(document.data), strict=True), []
    except ValidationError as error:
        # Names are compared below, also where another key is wrong.
        details = [e for e in error.errors() if e["loc"]]
        return None, [*problems_of(details, document), *_dangling(document)]


def _dangling(document: Document) -> Iterator[Problem]:
    """
    Yield the names that stand for nothing, as far as the file's shape lets them be compared.
    """
    groups = {
        name: [host for host in members if isinstance(host, str)]
        for name in _mapping(document, "groups")
        if isinstance(members := document.at(("groups", name, "hosts")), list)
    }
    tokens = document.at(("service", "api_tokens"))
    for path, text in dangling_names(
        groups,
        _mapping(document, "hosts"),
        [t for t in tokens if isinstance(t, str)] if isinstance(tokens, list) else [],
        _mapping(document, "secrets"),
    ):
        known = list(_mapping(document, "hosts" if path[0] == "groups" else "secrets"))
        text += f"; {nearest(str(document.at(path)), known)}"
        yield Problem(path, text, document.line_of(path))


def _mapping(document: Document, key: str) -> Mapping[str, object]:
    found = document.at((key,))
    return found if isinstance(found, dict) else {}


def _hosts(file: FleetFile, root: Path) -> Iterator[Host]:
    for name, entry in file.hosts.items():
        groups = _groups_of(file, name)
        laid: dict[str, str | int | float | bool] = {}
        for group in groups.values():
            laid |= group.vars
        rows = [entry.row, *(group.row for group in groups.values()), file.row]
        yield Host(
            name=name,
            address=entry.address,
            groups=tuple(groups),
            row=next(row for row in rows if row is not None),
            ssh=_ssh(file.ssh, entry, root),
            vars=laid | entry.vars,
        )


def _groups_of(file: FleetFile, host: str) -> dict[str, Group]:
    return {name: group for name, group in file.groups.items() if host in group.hosts}


def _ssh(fleet: Ssh, entry: HostEntry, root: Path) -> Ssh:
    own = {key: value for key, value in dict(entry.ssh).items() if value is not None}
    merged = fleet.model_copy(update=own)
    placed = {"key": _placed(merged.key, root), "known_hosts": _placed(merged.known_hosts, root)}
    return merged.model_copy(update=placed)


def _placed(path: Path | None, root: Path) -> Path | None:
    return None if path is None else root / path


def _placed_secret(secret: Secret, root: Path) -> Secret:
    return secret.model_copy(update={"file": _placed(secret.file, root)})


def _placed_signing(signing: Signing, root: Path) -> Signing:
    return signing.model_copy(
        update={
            "key": _placed(signing.key, root),
            "allowed_signers": _placed(signing.allowed_signers, root),
        }
    )


def _disagreements(file: FleetFile, document: Document) -> Iterator[Problem]:
    """
    Yield each value on which two groups of a host differ, unless the host says its own.
    """
    for name, entry in file.hosts.items():
        said: dict[str, tuple[str, object]] = {}
        for group_name, group in _groups_of(file, name).items():
            values: dict[str, object] = {
                f"vars.{key}": value for key, value in group.vars.items() if key not in entry.vars
            }
            if group.row is not None and entry.row is None:
                values["row"] = group.row
            for key, value in values.items():
                other, before = said.setdefault(key, (group_name, value))
                if (type(before), before) != (type(value), value):
                    path = ("groups", group_name, *key.split(".", 1))
                    yield Problem(
                        path,
                        f"is {json.dumps(value)}, but groups.{other}.{key} is {json.dumps(before)},"
                        f" and {name} is in both; give hosts.{name}.{key}, or one value",
                        document.line_of(path),
                    )


def _twins(hosts: Sequence[Host], document: Document) -> Iterator[Problem]:
    seen: dict[tuple[str, int, str | None], str] = {}
    for host in hosts:
        end = (host.address.lower(), host.ssh.port, host.ssh.jump)
        if (other := seen.setdefault(end, host.name)) != host.name:
            path = ("hosts", host.name, "address")
            text = f"{host.address} with SSH port {host.ssh.port} is hosts.{other} already"
            yield Problem(path, text, document.line_of(path))


def _unknown_rows(
    file: FleetFile, document: Document, known_rows: Collection[str]
) -> Iterator[Problem]:
    rows: dict[tuple[str, ...], str | None] = {("row",): file.row}
    rows |= {("groups", name, "row"): group.row for name, group in file.groups.items()}
    rows |= {("hosts", name, "row"): entry.row for name, entry in file.hosts.items()}
    for path, row in rows.items():
        if row is not None and row not in known_rows:
            text = (
                f"no row of the version matrix is named {row!r}; {nearest(row, sorted(known_rows))}"
            )
            yield Problem(path, text, document.line_of(path))


def _refused(shown: str, problems: Sequence[Problem], document: Document) -> InventoryError:
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    see = f"{_REFERENCE} shows every key with what it may hold"
    lines = [f"line {p.line}: {p}" if p.line else str(p) for p in ordered]
    if len(ordered) == 1:
        [only] = ordered
        fix = f"edit line {only.line} of {shown}" if only.line else f"edit {shown}"
        return InventoryError(f"{shown}: {only}", why=_quote(only, document), fix=f"{fix}; {see}")
    return InventoryError(
        f"{shown}: {len(ordered)} problems",
        why="".join(f"\n    {line}" for line in lines),
        fix=f"edit {shown}; {see}",
    )


def _quote(problem: Problem, document: Document) -> str:
    line, path = problem.line, problem.path
    if path and not document.holds(path):
        return f"{format_path(path[:-1]) or 'the file'} does not have this key"
    if line is None or not path or path[0] == "secrets" or line > len(document.source):
        return f"line {line}" if line else "the file was read whole"
    return f"line {line} reads: {document.source[line - 1].strip()}"
