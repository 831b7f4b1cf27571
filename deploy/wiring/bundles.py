"""
Bundles of this checkout: built, signed, checked.
"""

import time
from collections.abc import Callable
from pathlib import Path

from deploy.bundle.build import build_bundle, check_version
from deploy.bundle.check import check_bundle
from deploy.bundle.sign import sign_bundle
from deploy.bundle.store import Bundle
from deploy.errors import UsageError
from deploy.inventory.schema import Fleet
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import ensure_lock, interpreter_of
from deploy.wiring.checkout import ROOT, store


def make_bundle(of: Fleet, model: Path, version: str, progress: Callable[[str], None]) -> Bundle:
    """
    Build, sign and store a bundle for the fleet's row; return it.

    Raises:
        ModelPathError: *model* is absent, unreadable or not a model.
        PreconditionError: The signing key is missing.
    """
    check_version(version)  # before wheels are fetched
    row = load_matrix().row(_one_row(of))
    pin = interpreter_of(of.mirrors.python, row)
    lock = ensure_lock(row, interpreter=pin.line if pin else None, progress=progress)
    made = build_bundle(
        model=model,
        version=version,
        row_name=row.name,
        lock=lock,
        identity=of.signing.identity,
        fleet=of.name,
        now_s=int(time.time()),
        runtime_dir=ROOT / "runtime",
        store=store(),
    )
    return sign_bundle(made, key=of.signing.key)


def _one_row(of: Fleet) -> str:
    rows = sorted({host.row for host in of.hosts})
    if len(rows) > 1:
        raise UsageError(
            f"{of.name}: its hosts stand on different rows of the version matrix",
            why=", ".join(rows),
            fix="a bundle is for one row: give the others a fleet file of their own",
        )
    return rows[0]


def checked_bundle(of: Fleet, version: str | None) -> Bundle:
    """
    Return the bundle called *version*, or the newest, after checking signature and hashes.

    Raises:
        BundleUnsigned, BundleTampered, BundleTruncated: It is not what was signed.
    """
    found = store().get(version, of.name) if version else store().newest(of.name)
    check_bundle(found, allowed_signers=of.signing.allowed_signers)
    return found
