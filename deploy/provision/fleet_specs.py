"""
What every host of a fleet should have.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from deploy.certificates.wanted import own_authority, wanted_pairs
from deploy.inventory.schema import Fleet, Host, PythonMirror
from deploy.provision.certificate_resources import AcmeIssuer, Issuer
from deploy.provision.concerns import plan_resources
from deploy.provision.driver.keyring import read_keyring
from deploy.provision.interpreter_resource import StandalonePython
from deploy.provision.python import wheel_files
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import AnyResource, Venv, WheelFile
from deploy.provision.spec import (
    HostSpec,
    read_allowed_signers,
    read_mirrors_ca,
    resolve_tokens,
)
from deploy.provision.tls import with_certificate
from deploy.versions.matrix import Row, load_matrix
from deploy.wheelhouse import (
    InterpreterPin,
    Lock,
    cached_lock,
    ensure_archive,
    ensure_lock,
    ensure_uv,
    interpreter_of,
    unfetched_lock,
    uv_program,
)


def resource_sets(
    fleet: Fleet,
    host_program: bytes,
    env: Mapping[str, str],
    *,
    is_check: bool = False,
) -> dict[str, ResourceSet]:
    """
    Return the resources of every host by name; wheels that the cache lacks are None.

    Args:
        is_check: Certificates that would be issued are not written down.

    Raises:
        InventoryError: A row, secret or file of the fleet is missing.
    """
    matrix = load_matrix()
    rows = {name: matrix.row(name) for name in sorted({host.row for host in fleet.hosts})}
    tokens = resolve_tokens(fleet, env)
    signers = read_allowed_signers(fleet)
    mirrors_ca = read_mirrors_ca(fleet)
    keyring = read_keyring(fleet)
    now = datetime.now(UTC)
    certificates = wanted_pairs(fleet, now, is_kept=not is_check)
    uv = uv_program()
    pins = {name: interpreter_of(fleet.mirrors.python, row) for name, row in rows.items()}
    locks = {name: _lock(row, pins[name]) for name, row in rows.items()}
    specs = {
        name: HostSpec(
            fleet=fleet.name,
            row=row,
            lock=locks[name],
            service=fleet.service,
            release=fleet.release,
            mirrors=fleet.mirrors,
            api_tokens=tokens,
            allowed_signers=signers,
            host_program=host_program,
            uv=uv,
            mac_key=secrets.token_hex(32),
            mirrors_ca=mirrors_ca,
            storage_root=fleet.storage.root,
            interpreter=pins[name],
            driver=fleet.driver,
            driver_keyring=keyring,
            gpu=fleet.gpu,
        )
        for name, row in rows.items()
    }
    if certificates:
        a_pair = next(iter(certificates.values()))
        issuer = _issuer(fleet, now)
        specs = {
            name: replace(spec, certificate=a_pair, issuer=issuer) for name, spec in specs.items()
        }
    by_row = {name: plan_resources(spec) for name, spec in specs.items()}
    if certificates:
        return {
            host.name: with_certificate(by_row[host.row], certificates[host.name])
            for host in fleet.hosts
        }
    return {host.name: by_row[host.row] for host in fleet.hosts}


def with_wheels(
    fleet: Fleet,
    wanted: Mapping[str, ResourceSet],
    hosts: Iterable[Host],
    progress: Callable[[str], None],
) -> dict[str, ResourceSet]:
    """
    Return *wanted* with what the environments of *hosts* are made of; fetch what is missing: uv,
    standalone Pythons, wheels.

    Raises:
        CommandFailed: It could not be fetched.
    """
    ensure_uv(uv_program())
    complete = dict(wanted)
    fetches = _Fetches(fleet.mirrors.python, progress)
    for host in hosts:
        placed = tuple(
            _fetched(resource, host.row, fetches) for resource in wanted[host.name].placed
        )
        complete[host.name] = wanted[host.name].model_copy(update={"placed": placed})
    return complete


class _Fetches:
    """
    What a run fetches: each thing once, however many hosts need it.
    """

    def __init__(self, mirror: PythonMirror, progress: Callable[[str], None]) -> None:
        self._mirror, self._progress, self._matrix = mirror, progress, load_matrix()
        self._archives: dict[str, Path | None] = {}  # by row
        self._wheels: dict[str, tuple[WheelFile, ...]] = {}

    def archive(self, name: str) -> Path | None:
        """
        Return the standalone Python of the row *name*; None: the host's own is used.
        """
        if name not in self._archives:
            pin = interpreter_of(self._mirror, self._matrix.row(name))
            self._archives[name] = ensure_archive(pin, self._mirror) if pin else None
        return self._archives[name]

    def wheels(self, name: str) -> tuple[WheelFile, ...]:
        """
        Return the wheels of the row *name*.
        """
        if name not in self._wheels:
            row = self._matrix.row(name)
            pin = interpreter_of(self._mirror, row)
            lock = ensure_lock(row, interpreter=pin.line if pin else None, progress=self._progress)
            self._wheels[name] = wheel_files(lock)
        return self._wheels[name]


def _fetched(resource: AnyResource, row: str, fetches: _Fetches) -> AnyResource:
    if isinstance(resource, StandalonePython) and (path := fetches.archive(row)) is not None:
        return resource.model_copy(update={"source": str(path), "size": path.stat().st_size})
    if isinstance(resource, Venv) and resource.wheels is None:
        return resource.model_copy(update={"wheels": fetches.wheels(row)})
    return resource


def _lock(row: Row, pin: InterpreterPin | None) -> Lock:
    line = pin.line if pin else None
    return cached_lock(row, interpreter=line) or unfetched_lock(row, interpreter=line)


def _issuer(fleet: Fleet, now: datetime) -> Issuer | AcmeIssuer | None:
    if fleet.service.tls.kind == "acme":
        return AcmeIssuer(now=now)
    authority = own_authority(fleet, now)
    if authority is None:
        return None
    return Issuer(pem=authority.certificate.public_bytes(Encoding.PEM).decode(), now=now)
