"""
A lab of the drill: a few hosts with small disks of their own, a fleet file, bundles and traffic.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.load import LoadGenerator
from deploy.demo.load_report import LoadOutcome
from deploy.drill.checkout import must_run
from deploy.drill.etcd_server import EtcdServer
from deploy.drill.host_state import HostState
from deploy.drill.host_watch import HostWatch
from deploy.drill.journals import JournalFollower
from deploy.host.bundle.manifest import MANIFEST
from deploy.host.layout import JOURNAL, RELEASES, SLOT_LINKS
from deploy.lab import host as lab_host
from deploy.lab import lab
from deploy.lab.config import LabConfig
from deploy.private_files import write_private

VERSIONS = ("v1.0.0", "v1.1.0")
MODELS = ("good-v1", "good-v2")
LEASE_S = 15.0  # renewals have a fifth of it: less is lost where labs share two cores
PORT = 8000
DISK_BYTES = 4 << 30  # of each host, sparse
WATCH_S = 0.4  # between two looks at a host
STALE_S = 2.5  # older looks say nothing
RATE_RPS = 5.0  # for each host
_FAILED = (LoadOutcome.LOST, LoadOutcome.CUT_STREAM, LoadOutcome.ERROR_STATUS)

Progress = Callable[[str], None]


def fleet_document(
    config: LabConfig,
    hosts: tuple[str, ...],
    *,
    keep_old: str = "stopped",
    state: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Return the fleet file of the drill: short times, and a first wave of one host.

    Args:
        state: Where the desired state lives, as in a fleet file; None: on the hosts.
    """
    keys = config.keys
    return {
        "row": "torch-2.13-cpu",
        "ssh": {
            "key": str(keys / "id_ed25519"),
            "known_hosts": str(keys / "known_hosts"),
            "connect_timeout": "5s",
            "command_timeout": "20s",
            "keepalive": "2s",
        },
        "service": {
            "port": PORT,
            "device": "cpu",
            "precision": "fp32",
            "threads": 1,
            "memory_max": "1GiB",
            "state_max": "64MiB",
            "tmp_max": "64MiB",
            "max_batch_requests": 8,
            "max_wait": "0s",
            "start_timeout": "60s",
        },
        "release": {
            "canary": {
                "share_pct": 50,
                "duration": "1s",
                "give_up_after": "30s",
                "min_requests": 2,
                "interval": "500ms",
            },
            "waves": [1, "100%"],
            "gates": {"http_request_error_rate": {"min_requests": 10, "action": "revert"}},
            "drain_timeout": "5s",
            "lease_ttl": f"{LEASE_S:.0f}s",
            "keep": 20,
            "keep_old": keep_old,
        },
        "signing": {
            "identity": "lab@slipway",
            "key": str(keys / "signing_ed25519"),
            "allowed_signers": str(keys / "allowed_signers"),
        },
        "hosts": {name: {"address": config.address(name)} for name in hosts},
        **({"state": dict(state)} if state else {}),
    }


class DrillLab:
    """
    One lab.

    Args:
        number: From 1; labs with different numbers run side by side.
        models: Directories of two models, which differ.
        work: Folder for the fleet file, while the drill runs.
        etcd: Where the desired state lives; None: on the hosts.
    """

    def __init__(
        self,
        number: int,
        hosts: int,
        models: tuple[Path, Path],
        work: Path,
        progress: Progress,
        etcd: EtcdServer | None = None,
    ) -> None:
        default = LabConfig.from_env(os.environ)
        self.config = LabConfig(
            directory=default.directory.with_name(f"lab-drill{number}"),
            bases=default.bases,
            bridge=f"slpd{number}",
            prefix=f"10.77.{90 + number}",
        )
        self.number, self.names = number, self.config.names(hosts)
        self.fleet_file = work / f"drill{number}.yml"
        self._models, self._progress, self._etcd = models, progress, etcd
        self._life = 0  # of these hosts; new ones know nothing of what etcd has of earlier ones
        self.has_small_disks = False
        self._load: LoadGenerator | None = None
        self._prompts: list[str] = json.loads((models[1] / "live_prompts.json").read_text())
        self._watches: dict[str, HostWatch] = {}
        self._old_inits: dict[str, int | None] = {}  # of hosts that are to boot

    # -- up and down

    def up(self, checkout: Path) -> None:
        """
        Boot the hosts from empty disks, provision them, and release the first version.

        Raises:
            DeployError: A step failed.
        """
        self.down()
        self._life += 1
        self.has_small_disks = self._make_disks()
        lab.up(len(self.names), progress=self._progress, config=self.config)
        self.write_fleet_file()
        must_run(checkout, self.words("provision", "--yes"), 600.0)
        for version, model in zip(VERSIONS, self._models, strict=True):
            must_run(checkout, self.words("bundle", "--model", str(model), "--version", version))
        must_run(checkout, self.words("release", "--version", VERSIONS[0], "--yes"))
        self.start_traffic()

    def leave_up(self) -> None:
        """
        End the drill's own work on the hosts, and say where their fleet file is: it is placed in
        the folder of the lab, which outlives the drill.
        """
        self._leave_alone()
        if not self.fleet_file.exists():
            return  # they did not come up
        kept = self.config.directory / self.fleet_file.name
        write_private(kept, self.fleet_file.read_bytes())
        self.fleet_file = kept
        self._progress(f"lab {self.number} is left up: inv status --hosts {kept}")

    def down(self) -> None:
        """
        Stop everything, and delete the disks.
        """
        self._leave_alone()
        (self.config.directory / self.fleet_file.name).unlink(missing_ok=True)
        lab.down(progress=self._progress, config=self.config)
        self._remove_disks()

    def _leave_alone(self) -> None:
        self.stop_traffic()
        for watch in self._watches.values():
            watch.stop()
        self._watches.clear()
        self._old_inits.clear()

    def write_fleet_file(self, keep_old: str = "stopped") -> None:
        """
        Write the fleet file; *keep_old* is what becomes of the old slot after a release.
        """
        state = self._etcd.document(f"drill/{self._life}") if self._etcd else None
        document = fleet_document(self.config, self.names, keep_old=keep_old, state=state)
        write_private(self.fleet_file, yaml.safe_dump(document))

    def words(self, *words: str) -> list[str]:
        """
        Return the words of a task on this lab's fleet.
        """
        return [*words, "--hosts", str(self.fleet_file)]

    def _make_disks(self) -> bool:
        """
        Make each host a file system of its own, which can be filled; False if the machine cannot.
        """
        images = [self.config.disk_image(name) for name in self.names]
        images[0].parent.mkdir(parents=True, exist_ok=True)
        for image in images:
            image.unlink(missing_ok=True)
            with image.open("wb") as file:
                file.truncate(DISK_BYTES)
            argv = ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode or not Path("/dev/loop-control").exists():
                self._remove_disks()
                return False
        return True

    def _remove_disks(self) -> None:
        for name in self.names:
            self.config.disk_image(name).unlink(missing_ok=True)

    def unstage(self, version: str) -> None:
        """
        Delete the release *version*, which no slot serves, from every host: it is staged anew.
        """
        script = (
            f"for d in {RELEASES}/*; do "
            f"""grep -q '"version": *"{version}"' "$d/{MANIFEST}" || continue; """
            f'find {SLOT_LINKS} -lname "$d" -delete; rm -rf "$d"; done'
        )
        for name in self.names:
            lab.inside(name, ["sh", "-c", script], config=self.config)

    # -- traffic

    def start_traffic(self) -> None:
        self._load = LoadGenerator(
            [f"http://{self.config.address(name)}:{PORT}" for name in self.names],
            prompts=self._prompts,
            rate_rps=RATE_RPS * len(self.names),
            connections=3 * len(self.names),
            max_tokens=1,
            timeout_s=4.0,
            deadline_s=7200.0,
            networks=(self.config.subnet,),
        )
        self._load.start()

    def stop_traffic(self) -> None:
        load, self._load = self._load, None
        if load is not None:
            load.stop()

    def lost(self, from_s: float, to_s: float) -> dict[str, int]:
        """
        Return the failed requests of each host that were due between two times since 1970.
        """
        assert self._load is not None
        names = {f"http://{self.config.address(name)}:{PORT}": name for name in self.names}
        counts: dict[str, int] = {}
        for record in self._load.snapshot().records:
            if from_s <= record.due_at <= to_s and record.outcome in _FAILED:
                host = names[record.target]
                counts[host] = counts.get(host, 0) + 1
        return counts

    # -- looking

    def watch(self) -> None:
        """
        Look at every host from now on; begins again on a host that was booted since.
        """
        for name in self.names:
            watch = self._watches.get(name)
            if watch is None:
                watch = HostWatch(
                    self.config, name, interval_s=WATCH_S, port=PORT, prompt=self._prompts[0]
                )
                self._watches[name] = watch
            if not watch.is_running and not self._is_booting(name):
                watch.start()

    def unwatch(self, name: str) -> None:
        """
        Stop looking at *name*, which is to be booted: a running program delays its shutdown.
        """
        self._old_inits[name] = lab_host.leader(self.config, name)
        if name in self._watches:
            self._watches[name].stop()

    def _is_booting(self, name: str) -> bool:
        """
        Return whether *name* still has the init of before its boot, or none.
        """
        if name not in self._old_inits:
            return False
        if lab_host.leader(self.config, name) in (None, self._old_inits[name]):
            return True
        del self._old_inits[name]
        return False

    def states(self) -> dict[str, HostState | None]:
        """
        Return the newest look at each host; None without a fresh one.
        """
        now_s = time.monotonic()
        found: dict[str, HostState | None] = {}
        for name in self.names:
            watch = self._watches.get(name)
            last = watch.last if watch else None
            found[name] = last if last and now_s - last.at_s < STALE_S else None
        return found

    def versions(self) -> dict[str, str | None]:
        """
        Return the version that each host serves with one slot; None where it does not.
        """
        return {
            name: state.version if state and state.serves_one else None
            for name, state in self.states().items()
        }

    def wait_for_one_version(self, timeout_s: float) -> Mapping[str, str | None]:
        """
        Return what hosts serve as soon as it is one version, or after *timeout_s*.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            self.watch()
            found = self.versions()
            if len(set(found.values())) == 1 and None not in found.values():
                return found
            if time.monotonic() > deadline_s:
                return found
            time.sleep(0.1)

    def follower(self) -> JournalFollower:
        """
        Return what follows the journals of all hosts, from now on.
        """
        return JournalFollower(
            {name: self.config.root(name) / JOURNAL.lstrip("/") for name in self.names}
        )
