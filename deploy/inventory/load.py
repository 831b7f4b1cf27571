"""
Loads a fleet file into a `Fleet`; one error lists all problems of the file.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from deploy.errors import InventoryError
from deploy.foreign_text import visible
from deploy.host.names import FLEET
from deploy.inventory.document import Document, Problem, format_path, parse_document
from deploy.inventory.names import JumpChain, canonical_address
from deploy.inventory.schema import (
    Fleet,
    FleetFile,
    Host,
    HostEntry,
    HostGroup,
    Secret,
    Service,
    Signing,
    Ssh,
)
from deploy.inventory.schema.gpu import GpuSection
from deploy.inventory.schema.references import dangling_names, secret_references
from deploy.inventory.select import select_hosts
from deploy.inventory.validation_messages import nearest, problems_of

_FOLDER = "inventories"
_MAX_BYTES = 4 * 2**20
_NAME_MAX = 200  # characters of a name that an error repeats
_REFERENCE = "inventories/example.yml"


def load_fleet(
    name: str,
    *,
    root: Path,
    limit: str | None = None,
    known_rows: Mapping[str, bool] | None = None,
) -> Fleet:
    """
    Return the fleet *name*, reduced to the hosts that *limit* selects.

    Args:
        name: NAME of `inventories/NAME.yml`, or a path that ends in .yml.
        root: Folder of the repository.  Relative paths start from it, also those in the file.
        limit: Selection for `select_hosts`; None for all hosts.
        known_rows: Rows of the version matrix, each with whether it needs a GPU, to check each
            `row`; None for no check.

    Raises:
        InventoryError: The file is missing, unreadable or invalid; lists all problems.
        UnknownHost: *limit* has a term that matches no host.
    """
    root = root.absolute()
    path = _fleet_path(name, root)
    display_path = visible(str(path.relative_to(root) if path.is_relative_to(root) else path))
    document = parse_document(_read(path, display_path))
    file, schema_problems = _validate(document)
    problems = [*document.problems, *schema_problems]
    if file is None:
        raise _invalid_file(display_path, problems, document)
    hosts = tuple(_hosts(file, root))
    problems += [*_group_conflicts(file, document), *_duplicate_machines(hosts, document)]
    problems += _contradicting_gpus(file, document)
    if known_rows is not None:
        problems += _unknown_rows(file, document, known_rows)
        problems += _contradicting_rows(file, hosts, document, known_rows)
    if problems:
        raise _invalid_file(display_path, problems, document)
    fleet = Fleet(
        name=path.stem,
        path=path,
        hosts=hosts,
        mirrors=file.mirrors.model_copy(
            update={"ca_bundle": _absolute(file.mirrors.ca_bundle, root)}
        ),
        secrets={key: _with_absolute_file(value, root) for key, value in file.secrets.items()},
        service=_with_absolute_tls(file.service, root),
        release=file.release.policy,
        signing=_with_absolute_paths(file.signing, root),
        hooks=file.release.hooks,
        notify=file.release.notify,
        storage=file.storage,
        driver=file.driver.model_copy(update={"keyring": _absolute(file.driver.keyring, root)}),
        gpu=file.gpu,
        state=file.state.model_copy(
            update={
                name: _absolute(getattr(file.state, name), root) for name in ("ca", "cert", "key")
            }
        ),
    )
    return select_hosts(fleet, limit)


def fleet_names(root: Path) -> list[str]:
    """
    Return the names of the fleet files in *root*/inventories, sorted.
    """
    stems = (path.stem for path in (root / _FOLDER).glob("*.yml") if path.is_file())
    return sorted(stem for stem in stems if re.fullmatch(FLEET.regex, stem))


def _fleet_path(name: str, root: Path) -> Path:
    names = fleet_names(root)
    if name.endswith(".yml"):
        return _named_file(name, root, names)
    path = root / _FOLDER / f"{name}.yml"
    if name.endswith(".yaml"):
        raise InventoryError(
            f"{visible(name, limit=_NAME_MAX)}: not a fleet file",
            why="the name of a fleet file ends in .yml",
            fix="rename the file",
        )
    if name not in names:
        similar = difflib.get_close_matches(name[:_NAME_MAX], names, n=1)
        raise InventoryError(
            f"no fleet is named {visible(name, limit=_NAME_MAX)!r}",
            why=f"the fleets in {_FOLDER}/ are: {', '.join(names) or 'none'}",
            fix=f"did you mean {similar[0]}?"
            if similar
            else "give one of these names, or the path of a .yml file",
        )
    return path


def _named_file(name: str, root: Path, names: Sequence[str]) -> Path:
    shown = visible(name, limit=_NAME_MAX)
    fix = f"give the path of a fleet file, or the name of a fleet: {', '.join(names)}"
    try:
        path = root / Path(name).expanduser()
        if not path.is_file():
            reason = "is a folder" if path.is_dir() else "does not exist, or is no regular file"
            raise InventoryError(
                f"{shown}: no such fleet file", why=f"{root / shown} {reason}", fix=fix
            )
    except (OSError, RuntimeError, ValueError) as error:  # too long; ~ without a home; NUL
        why = error.strerror if isinstance(error, OSError) else error
        raise InventoryError(f"{shown}: no such fleet file", why=str(why), fix=fix) from None
    try:
        FLEET.parse(path.stem)
    except ValueError as error:
        raise InventoryError(
            f"{shown}: not a name for a fleet",
            why=f"the name of the file becomes that of the fleet, which {error}",
            fix="rename the file",
        ) from None
    return path


def _read(path: Path, display_path: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise InventoryError(
                f"{display_path}: is too large for a fleet file",
                why=f"it has more than {_MAX_BYTES // 2**20} MiB",
                fix="give the path of a fleet file",
            )
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InventoryError(
            f"{display_path}: is not UTF-8 text",
            why=f"byte {error.start} is {error.object[error.start]:#04x}",
            fix=f"save {display_path} as UTF-8",
        ) from None
    except OSError as error:
        raise InventoryError(
            f"{display_path}: cannot be read",
            why=str(error.strerror),
            fix=f"give the user who runs this command read permission on {display_path}",
        ) from error


def _validate(document: Document) -> tuple[FleetFile | None, list[Problem]]:
    if document.data is None and document.problems:
        return None, []
    if not isinstance(document.data, dict):
        return None, [Problem((), "should be a mapping of keys, such as `hosts:`", 1)]
    try:
        # Strict and from JSON: a list is accepted as a tuple, but "5" and true are not numbers.
        return FleetFile.model_validate_json(json.dumps(document.data), strict=True), []
    except ValidationError as error:
        # An error without a path comes from the check of names, which is repeated below: pydantic
        # runs it only if all other keys are valid.
        details = [e for e in error.errors() if e["loc"]]
        return None, [*problems_of(details, document), *_undefined_names(document)]


def _undefined_names(document: Document) -> Iterator[Problem]:
    """
    Yield references to hosts and secrets that are not defined, also in an invalid file.
    """
    groups = {
        name: [host for host in members if isinstance(host, str)]
        for name in _mapping(document, "groups")
        if isinstance(members := document.at(("groups", name, "hosts")), list)
    }
    for path, text in dangling_names(
        groups,
        _mapping(document, "hosts"),
        secret_references(document.data),
        _mapping(document, "secrets"),
    ):
        known = list(_mapping(document, "hosts" if path[0] == "groups" else "secrets"))
        text += f"; {nearest(str(document.at(path)), known)}"
        yield Problem(path, text, document.line_of(path))


def _mapping(document: Document, key: str) -> Mapping[str, object]:
    value = document.at((key,))
    return value if isinstance(value, dict) else {}


_SSH_KEYS = frozenset({"user", "port", "key", "known_hosts", "jump"})


def _hosts(file: FleetFile, root: Path) -> Iterator[Host]:
    for name, entry in file.hosts.items():
        groups = _groups_of(file, name)
        variables: dict[str, str | int | float | bool] = {}
        for group in groups.values():
            variables |= group.vars
        rows = [entry.row, *(group.row for group in groups.values()), file.row]
        yield Host(
            name=name,
            address=entry.address,
            groups=tuple(groups),
            row=next(row for row in rows if row is not None),
            ssh=_ssh(file.ssh, entry, root),
            vars=variables | entry.vars,
            open_keys=_SSH_KEYS - file.ssh.model_fields_set - _set_keys(entry),
        )


def _set_keys(entry: HostEntry) -> set[str]:
    return {key for key, value in dict(entry.ssh).items() if value is not None}


def _groups_of(file: FleetFile, host: str) -> dict[str, HostGroup]:
    return {name: group for name, group in file.groups.items() if host in group.hosts}


def _ssh(fleet: Ssh, entry: HostEntry, root: Path) -> Ssh:
    overrides = {key: value for key, value in dict(entry.ssh).items() if value is not None}
    ssh = fleet.model_copy(update=overrides)
    key, known_hosts = _absolute(ssh.key, root), _absolute(ssh.known_hosts, root)
    return ssh.model_copy(update={"key": key, "known_hosts": known_hosts})


def _absolute(path: Path | None, root: Path) -> Path | None:
    return None if path is None else root / path


def _with_absolute_file(secret: Secret, root: Path) -> Secret:
    return secret.model_copy(update={"file": _absolute(secret.file, root)})


def _with_absolute_paths(signing: Signing, root: Path) -> Signing:
    return signing.model_copy(
        update={
            "key": _absolute(signing.key, root),
            "allowed_signers": _absolute(signing.allowed_signers, root),
        }
    )


def _with_absolute_tls(service: Service, root: Path) -> Service:
    names = ("certificate", "key", "authority")
    paths = {name: _absolute(getattr(service.tls, name), root) for name in names}
    return service.model_copy(update={"tls": service.tls.model_copy(update=paths)})


def _group_conflicts(file: FleetFile, document: Document) -> Iterator[Problem]:
    """
    Yield each key that two groups of a host set to different values, unless the host sets it.
    """
    for name, entry in file.hosts.items():
        first_values: dict[str, tuple[str, object]] = {}
        for group_name, group in _groups_of(file, name).items():
            values: dict[str, object] = {
                f"vars.{key}": value for key, value in group.vars.items() if key not in entry.vars
            }
            if group.row is not None and entry.row is None:
                values["row"] = group.row
            for key, value in values.items():
                other, first_value = first_values.setdefault(key, (group_name, value))
                if (type(first_value), first_value) != (type(value), value):
                    path = ("groups", group_name, *key.split(".", 1))
                    yield Problem(
                        path,
                        f"is {json.dumps(value)}, but groups.{other}.{key} is"
                        f" {json.dumps(first_value)}, and {name} is in both groups; set"
                        f" hosts.{name}.{key}, or the same value in both groups",
                        document.line_of(path),
                    )


def _duplicate_machines(hosts: Sequence[Host], document: Document) -> Iterator[Problem]:
    """
    Yield each host that has the address, SSH port and jump host of an earlier one.
    """
    first_names: dict[tuple[str, int, JumpChain | None], str] = {}
    for host in hosts:
        jump = host.ssh.jump.canonical if host.ssh.jump else None
        endpoint = (canonical_address(host.address), host.ssh.port, jump)
        if (other := first_names.setdefault(endpoint, host.name)) != host.name:
            path = ("hosts", host.name, "address")
            text = f"hosts.{other} has the same address {host.address} and SSH port {host.ssh.port}"
            yield Problem(path, text, document.line_of(path))


def _unknown_rows(
    file: FleetFile, document: Document, known_rows: Mapping[str, bool]
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


def _contradicting_rows(
    file: FleetFile, hosts: Sequence[Host], document: Document, known_rows: Mapping[str, bool]
) -> Iterator[Problem]:
    """
    Yield a problem if the engine's device and the row of a host contradict each other.
    """
    device = file.service.options.device
    others = [host for host in hosts if known_rows.get(host.row) is (device != "cuda")]
    if not others:
        return
    path = ("service", "device")
    is_default = "" if document.holds(path) else " (the default)"
    kind, remedy = (
        ("CPUs", "service.device: cpu, or a row with CUDA")
        if device == "cuda"
        else ("GPUs", "service.device: cuda, or a row for CPUs")
    )
    yield Problem(
        path,
        f"is {device}{is_default}, but the row of hosts.{others[0].name}, {others[0].row}, is for"
        f" {kind}; set {remedy}",
        document.line_of(path),
    )


def _contradicting_gpus(file: FleetFile, document: Document) -> Iterator[Problem]:
    """
    Yield a problem for each setting of GPUs that the engine's own contradict.
    """
    options = file.service.options
    if options.device == "cpu":
        for name, is_set in (
            ("gpu", file.gpu != GpuSection()),
            ("driver", file.driver.version is not None),
        ):
            if is_set:
                text = "has no effect: service.device is cpu; remove it"
                yield Problem((name,), text, document.line_of((name,)))
    elif file.gpu.count is not None and file.gpu.count < options.gpus:
        path = ("gpu", "count")
        text = f"is {file.gpu.count}, but service.gpus is {options.gpus}"
        yield Problem(path, text, document.line_of(path))


def _invalid_file(
    display_path: str, problems: Sequence[Problem], document: Document
) -> InventoryError:
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    reference = f"{_REFERENCE} shows every key with its meaning and range"
    lines = [f"line {p.line}: {p}" if p.line else str(p) for p in ordered]
    if len(ordered) == 1:
        [only] = ordered
        place = f"line {only.line} of {display_path}" if only.line else display_path
        return InventoryError(
            f"{display_path}: {only}",
            why=_observed(only, document),
            fix=f"edit {place}; {reference}",
        )
    return InventoryError(
        f"{display_path}: {len(ordered)} problems",
        why="".join(f"\n    {line}" for line in lines),
        fix=f"edit {display_path}; {reference}",
    )


def _observed(problem: Problem, document: Document) -> str:
    """
    Return the line that has the problem; never a line under `secrets`.
    """
    line, path = problem.line, problem.path
    if path and not document.holds(path):
        return f"{format_path(path[:-1]) or 'the file'} does not have this key"
    if line is None or not path or path[0] == "secrets" or line > len(document.source):
        return f"the problem is on line {line}" if line else "the problem concerns the whole file"
    return f"line {line} reads: {visible(document.source[line - 1].strip(), limit=_NAME_MAX)}"
