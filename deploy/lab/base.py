"""
The base tree: a minimal server, shared read-only by all hosts.

It is built once for each recipe and kept; the recipe has the suite of the distribution.
It contains nothing that the toolkit installs, so that provisioning a lab host does the same work as
on a rented machine.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from deploy.lab import processes
from deploy.lab.commands import follow, run
from deploy.lab.config import LabConfig
from deploy.lab.mounts import remove_tree
from deploy.lab.processes import Process
from deploy.lab.sources import Sources, split_login
from deploy.lab.suites import distribution, title
from deploy.private_files import write_private
from deploy.units import format_duration

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "sudo",
    "python3",
    "ca-certificates",
    "curl",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "netbase",
    "nftables",
    "procps",
)
STAGES = ("retrieving", "extracting", "unpacking", "configuring")
TIMEOUT_S = 1200.0
_SCRIPTS = Path("/usr/share/debootstrap/scripts")
# Raise it when `_finish` changes: trees of another recipe are not used.
_FORMAT = 1


def recipe_digest(architecture: str, suite: str) -> str:
    """
    Return the digest of the base's recipe, 12 hex digits. Pure.
    """
    recipe = "\n".join([str(_FORMAT), suite, architecture, *PACKAGES])
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def ensure_base(
    config: LabConfig,
    sources: Sources,
    *,
    now: Callable[[], float],
    progress: Callable[[str], None],
) -> Path:
    """
    Return the base tree; build it first if there is none for this recipe.

    The build happens in another folder, which is renamed at the end, so that a killed build never
    leaves a partial tree under the final name.
    """
    architecture = run(["dpkg", "--print-architecture"]).strip()
    base = config.bases / f"base-{recipe_digest(architecture, config.suite)}"
    if base.is_dir():
        return base
    config.bases.mkdir(parents=True, exist_ok=True)
    with _build_lock(config).open("w") as lock:
        # Labs share the bases: another lab may have built it during the wait for the lock.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.is_dir():
            _build(config, sources, base, now=now, progress=progress)
    return base


def remove_unfinished(config: LabConfig, running: Iterable[Process]) -> None:
    """
    Kill the processes of interrupted builds and delete their trees.

    Does nothing while a build holds the lock.
    """
    if not _build_lock(config).exists():
        return
    with _build_lock(config).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        trees = list(config.bases.glob("building-*"))
        processes.kill_all(pid for tree in trees for pid in processes.using_tree(tree, running))
        for tree in trees:
            remove_tree(tree)


def _build_lock(config: LabConfig) -> Path:
    return config.bases / "building.lock"


def _build(
    config: LabConfig,
    sources: Sources,
    base: Path,
    *,
    now: Callable[[], float],
    progress: Callable[[str], None],
) -> None:
    building = config.bases / f"building-{os.getpid()}"
    building.mkdir()
    started_s = now()
    progress(f"building the {title(config.suite)} base tree; needed once, takes one or two minutes")
    archive = distribution(config.suite)
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    argv += [f"--keyring={archive.keyring}", config.suite, str(building)]
    mirror, netrc = split_login(sources.mirror) if sources.mirror else (None, "")
    if (_SCRIPTS / config.suite).exists():
        argv += [mirror] if mirror else []
    else:
        argv += [mirror or "", archive.script]  # "": the default mirror of the script
    env = {"http_proxy": sources.http_proxy} if sources.http_proxy else {}
    with tempfile.TemporaryDirectory(prefix="slipway-") as home:
        if netrc:  # for debootstrap's wget; all users of a machine can read arguments
            write_private(Path(home) / ".netrc", netrc)
            env["HOME"] = home
        # debootstrap dies with `up`; `down` finds debootstrap's own children by their root folder.
        follow(
            ["setpriv", "--pdeathsig", "KILL", *argv],
            on_line=DebootstrapStages(progress).on_line,
            timeout_s=TIMEOUT_S,
            env=env,
            fix=f"read {building}/debootstrap/debootstrap.log and check this machine's apt sources",
        )
    _finish(building)
    building.rename(base)
    progress(f"base tree built in {format_duration(now() - started_s)}")


class DebootstrapStages:
    """
    Reports each stage of debootstrap once; debootstrap prints a line for every package.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._reported: set[str] = set()

    def on_line(self, line: str) -> None:
        stage = line.removeprefix("I: ").split(" ")[0].lower()
        if line.startswith("I: ") and stage in STAGES and stage not in self._reported:
            self._reported.add(stage)
            self._progress(f"base tree: {stage} packages")


def _finish(tree: Path) -> None:
    """
    Remove what must differ between hosts (keys, machine id) and what gets stale (apt's caches).
    """
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (tree / "etc/machine-id").write_text("")
    for package in (tree / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    for index in (tree / "var/lib/apt/lists").iterdir():
        if index.is_file():
            index.unlink()
