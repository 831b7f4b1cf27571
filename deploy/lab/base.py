"""
The base tree: Debian 12 as an installer leaves a small server, shared read-only by all hosts.

Built once for a recipe and kept. It has nothing that this toolkit installs: provisioning a lab
host is real work, as on a rented one.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from deploy.lab import processes
from deploy.lab.commands import follow, run
from deploy.lab.config import LabConfig
from deploy.lab.mounts import remove_tree
from deploy.lab.processes import Process
from deploy.lab.sources import SUITE, Sources
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
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
STAGES = ("retrieving", "extracting", "unpacking", "configuring")
TIMEOUT_S = 1200.0
# Changes when `_finish` does: trees of another recipe are not used.
_FORMAT = 1


def recipe_digest(architecture: str) -> str:
    """
    Return 12 hex digits of what the base is made from. Pure.
    """
    recipe = "\n".join([str(_FORMAT), SUITE, architecture, *PACKAGES])
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def ensure_base(
    config: LabConfig,
    sources: Sources,
    *,
    now: Callable[[], float],
    progress: Callable[[str], None],
) -> Path:
    """
    Return the base tree, after building it if this recipe was not built before.

    It is built beside its place and renamed there, so that a killed build leaves no half of one.
    """
    architecture = run(["dpkg", "--print-architecture"]).strip()
    base = config.bases / f"base-{recipe_digest(architecture)}"
    if base.is_dir():
        return base
    config.bases.mkdir(parents=True, exist_ok=True)
    with _build_lock(config).open("w") as lock:
        # Labs share the bases: whoever comes second finds it built.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.is_dir():
            _build(config, sources, base, now=now, progress=progress)
    return base


def remove_unfinished(config: LabConfig, running: Iterable[Process]) -> None:
    """
    End and delete what killed builds left; a build that somebody still waits for stays.
    """
    if not _build_lock(config).exists():
        return
    with _build_lock(config).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        trees = list(config.bases.glob("building-*"))
        processes.kill_all(pid for tree in trees for pid in processes.working_in(tree, running))
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
    began_s = now()
    progress(f"building the base tree, Debian {SUITE}, once; this takes a minute or two")
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    argv += [f"--keyring={KEYRING}", SUITE, str(building)]
    if sources.mirror:
        argv.append(sources.mirror)
    # A killed `up` takes debootstrap along; what that had started, `down` finds by its root.
    follow(
        ["setpriv", "--pdeathsig", "KILL", *argv],
        on_line=Stages(progress).hear,
        timeout_s=TIMEOUT_S,
        env={"http_proxy": sources.http_proxy} if sources.http_proxy else None,
        fix=f"see {building}/debootstrap/debootstrap.log; check the machine's apt sources",
    )
    _finish(building)
    building.rename(base)
    progress(f"base tree built in {format_duration(now() - began_s)}")


class Stages:
    """
    Tells of debootstrap's stages, of which each has a line for every package.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._told: set[str] = set()

    def hear(self, line: str) -> None:
        stage = line.removeprefix("I: ").split(" ")[0].lower()
        if line.startswith("I: ") and stage in STAGES and stage not in self._told:
            self._told.add(stage)
            self._progress(f"base tree: {stage} packages")


def _finish(tree: Path) -> None:
    """
    Take out what must differ from host to host, and what ages.
    """
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (tree / "etc/machine-id").write_text("")
    for name in (tree / "var/cache/apt/archives").glob("*.deb"):
        name.unlink()
    for name in (tree / "var/lib/apt/lists").iterdir():
        if name.is_file():
            name.unlink()
