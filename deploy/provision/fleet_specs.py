"""
What every host of a fleet should have.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from cryptography.hazmat.primitives.serialization import Encoding

from deploy.certificates.wanted import own_authority, wanted_pairs
from deploy.inventory.schema import Fleet, Host
from deploy.provision.certificate_resources import AcmeIssuer, Issuer
from deploy.provision.concerns import plan_resources
from deploy.provision.driver.keyring import read_keyring
from deploy.provision.python import wheel_files
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import Venv
from deploy.provision.spec import (
    HostSpec,
    find_uv,
    read_allowed_signers,
    read_mirrors_ca,
    resolve_tokens,
)
from deploy.provision.tls import with_certificate
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import cached_lock, ensure_lock, unfetched_lock


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
    uv = find_uv()
    locks = {name: cached_lock(row) or unfetched_lock(row) for name, row in rows.items()}
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
    wanted: Mapping[str, ResourceSet], hosts: Iterable[Host], progress: Callable[[str], None]
) -> dict[str, ResourceSet]:
    """
    Return *wanted* with the wheels of the environments of *hosts*; fetch those that are missing.

    Raises:
        CommandFailed: The wheels could not be fetched.
    """
    matrix, complete = load_matrix(), dict(wanted)
    for host in hosts:
        placed = wanted[host.name].placed
        if not any(isinstance(resource, Venv) and resource.wheels is None for resource in placed):
            continue
        wheels = wheel_files(ensure_lock(matrix.row(host.row), progress=progress))
        complete[host.name] = wanted[host.name].model_copy(
            update={
                "placed": tuple(
                    resource.model_copy(update={"wheels": wheels})
                    if isinstance(resource, Venv)
                    else resource
                    for resource in placed
                )
            }
        )
    return complete


def _issuer(fleet: Fleet, now: datetime) -> Issuer | AcmeIssuer | None:
    if fleet.service.tls.kind == "acme":
        return AcmeIssuer(now=now)
    authority = own_authority(fleet, now)
    if authority is None:
        return None
    return Issuer(pem=authority.certificate.public_bytes(Encoding.PEM).decode(), now=now)
