"""
Deletes what no rollback can ask for, and says which releases that were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from deploy.host import desired
from deploy.host.bundle import venv
from deploy.host.files import discard, leftovers, locked, remove
from deploy.host.good import startable
from deploy.host.journal import Journal
from deploy.host.journaled import journaled
from deploy.host.layout import SLOTS, Layout
from deploy.host.protocol import Call, DroppedRelease, Retire, Retired
from deploy.host.slots.slot import linked_bundle, version_of
from deploy.host.system import System
from deploy.host.trusted_files import LIST_MAX, read_below

_LOCK_S = 60.0
_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def run(system: System, call: Call, request: Retire) -> Retired:
    """
    Keep the releases that a rollback can ask for, with what they need.

    They are those of the last good releases, of the slots, where the host's own way back leads to
    as well, and of the desired state.
    """
    keep = request.keep
    layout = system.layout
    with journaled(system, call, request.VERB, {"keep": keep}) as op:
        with locked(system, layout.stage_lock, _LOCK_S):
            with op.locked():
                recorded = {good.bundle: good.release for good in Journal(system).replay().good}
                newest_first = _newest_first(system)
                linked = [linked_bundle(layout, slot) for slot in SLOTS]
                wanted = set(_DIGEST.findall(desired.stored(layout).text))
                releases = {b for b in (*newest_first[:keep], *linked, *wanted) if b}
                kept = {p for b in releases if (p := layout.release(b)).is_dir()}
                versions = {b: version_of(layout, b) for b in _names(layout.releases)}
                venvs = {_target(path / "venv") for path in kept} | _provisioned(layout)
                models = {_target(path / "model") for path in kept} | {layout.blobs}
            # Releases first: no release is ever left with a dangling link.
            gone = {
                "releases": _sweep(layout.releases, kept),
                "venvs": _sweep(layout.venvs, venvs),
                "pythons": _sweep(layout.pythons, _pythons(layout, venvs)),
                "models": _sweep(layout.models, models),
                "blobs": _sweep_blobs(layout.blobs),
                "wheels": _sweep(layout.wheelhouse, _wheels(layout, venvs)),
                "incoming": _sweep(layout.incoming, set()),
            }
        dropped = tuple(
            DroppedRelease(bundle, versions.get(bundle), recorded.get(bundle))
            for bundle in gone["releases"]
            if _DIGEST.fullmatch(bundle)
        )
        kept_names = tuple(sorted(path.name for path in kept))
        result = Retired(kept=kept_names, dropped=dropped, removed=gone)
        op.result = result
    return result


def _newest_first(system: System) -> list[str]:
    """
    Return the bundles that can serve and were recorded as good; one released twice counts once.
    """
    good = startable(system.layout, Journal(system).replay().good)
    return list(dict.fromkeys(release.bundle for release in reversed(good)))


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []


def _sweep(directory: Path, kept: set[Path]) -> tuple[str, ...]:
    if not directory.is_dir():
        return ()
    for path in leftovers(directory):
        remove(path)
    gone = sorted(path for path in directory.iterdir() if path not in kept)
    for path in gone:
        discard(path)
    return tuple(path.name for path in gone)


def _sweep_blobs(blobs: Path) -> tuple[str, ...]:
    """
    Delete the model files that no model links to.
    """
    if not blobs.is_dir():
        return ()
    return _sweep(blobs, {path for path in blobs.iterdir() if path.lstat().st_nlink > 1})


def _wheels(layout: Layout, venvs: Iterable[Path]) -> set[Path]:
    names: set[str] = set()
    for path in venvs:
        names |= venv.wheels_of(path)
    return {layout.wheelhouse / name for name in names}


def _pythons(layout: Layout, venvs: Iterable[Path]) -> set[Path]:
    """
    Return the standalone Pythons to which the interpreters of *venvs* lead.

    Provisioning places one, and builds its environment, under one lease, as this has.  Staging
    places none: a release that is staged again once its Python is deleted needs it provisioned.
    """
    top, used = layout.pythons.resolve(), set()
    for path in venvs:
        program = (path / "bin" / "python").resolve()
        if top in program.parents:
            used.add(layout.pythons / program.relative_to(top).parts[0])
    return used


def _provisioned(layout: Layout) -> set[Path]:
    """
    Return the venvs of provisioning, in use or not.
    """
    try:
        locks = json.loads(read_below(layout.etc, layout.host_config.name, LIST_MAX))["locks"]
        return {layout.venvs / str(digest) for digest in locks}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _target(link: Path) -> Path:
    return link.readlink() if link.is_symlink() else link
