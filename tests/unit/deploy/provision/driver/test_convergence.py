"""
The resources of a driver on a host that behaves: whatever is killed, the next run ends right.
"""

import subprocess
from dataclasses import replace

import pytest

from deploy.host.protocol import RebootReason, UnitFacts
from deploy.inventory.schema.gpu import DriverSection, GpuSection
from deploy.provision.apt_sources import os_release_of
from deploy.provision.concerns import plan_resources
from deploy.provision.driver.commands import build_command, commands_of, transaction_of
from deploy.provision.driver.gpu_state import GpuUnit
from deploy.provision.driver.plan import (
    FABRIC_UNIT,
    NOUVEAU,
    PERSISTENCE_UNIT,
    PREFERENCES,
    SOURCES,
    Install,
    upstream,
)
from deploy.provision.driver.resource import LoadedDriver, NvidiaDriver
from deploy.provision.resource_set import ResourceSet
from deploy.provision.worker_request import HostRequest, WorkerRequest
from tests.unit.deploy.provision.builders import make_spec
from tests.unit.deploy.provision.driver.builders import (
    device,
    file_facts,
    kernel,
    make_facts,
    make_gpu_state,
    make_wish,
    module,
    package,
    simulated,
    with_gpu,
)

MANY = 60  # steps after which a host that still differs never ends
DEPENDENCIES = ("libnvidia-ml1", "dkms")


class DriverHost:
    """
    A host that does what the steps ask for, as the real programs would.

    Attributes:
        facts: What the host program would report.
        done: Steps taken, by kind.
    """

    def __init__(self, wish, facts):
        self.wish, self.facts, self.done = wish, facts, []

    def look(self, resource):
        """
        Return the facts, with the simulation where the resource asks for one.
        """
        facts = replace(self.facts, simulation=None)
        query = resource.follow_up(facts) if isinstance(resource, NvidiaDriver) else None
        return facts if query is None else replace(facts, simulation=self._simulate(query))

    def take(self, step, facts):
        """
        Take *step*, which was chosen with *facts*.
        """
        if step.kind == "prove":
            return  # it only looks
        self.done.append(step.kind)
        getattr(self, f"_{step.kind}")(step, facts)

    def break_off(self, step, facts):
        """
        Take the first half of *step*: the host was killed in the middle.
        """
        if not isinstance(step, Install):
            return
        self._unpack(transaction_of(step, facts), complete=False)

    def _simulate(self, query):
        known = {one.package for one in self.facts.gpu.packages}
        names = [*query.install, *DEPENDENCIES]
        return simulated(
            *((name, None, self._version(name)) for name in names if name not in known)
        )

    def _version(self, name):
        own = ("linux-", "nvidia-persistenced", "nvidia-modprobe", "dkms")
        return "1.0-1" if name.startswith(own) else f"{self.wish.version}-0+deb12u1"

    def _gpu(self, **changes):
        self.facts = with_gpu(self.facts, **changes)

    def _files(self, path, found):
        self.facts = replace(self.facts, paths=self.facts.paths | {path: found})

    def _place(self, step, facts):
        self._files(step.path, file_facts(step.content))
        if step.path == NOUVEAU:
            kernels = (replace(one, old_initramfs=True) for one in self.facts.gpu.kernels)
            self._gpu(kernels=tuple(kernels))

    def _place_source(self, step, facts):
        text = step.sources.text(os_release_of(facts)).encode()
        self._files(SOURCES, file_facts(text))
        self._gpu(old_lists=True)

    def _remove(self, step, facts):
        self._files(step.path, None)

    def _read_lists(self, step, facts):
        assert "apt-get -q update" in commands_of(step, facts)[0]
        self._gpu(old_lists=False)

    def _install(self, step, facts):
        assert facts.simulation is not None, "a transaction that was not simulated"
        assert facts.paths[PREFERENCES] is not None, "preferences come first"
        self._unpack(transaction_of(step, facts), complete=True)
        kernels = (
            replace(one, headers=True, modules=(module(self.wish.version),))
            for one in self.facts.gpu.kernels
        )
        self._gpu(kernels=tuple(kernels), library=self.wish.version)

    def _unpack(self, transaction, *, complete):
        packages = {one.package: one for one in self.facts.gpu.packages}
        names = [*transaction.install, *(f"{n}={self._version(n)}" for n in DEPENDENCIES)]
        for text in names:
            name, _, version = text.partition("=")
            origin = "linux" if name.startswith("linux") else "nvidia-graphics-drivers"
            origin = "dkms" if name == "dkms" else origin
            old = packages.get(name)
            version = version or (old.version if old else self._version(name))
            is_held = complete and (name in transaction.hold or bool(old and old.held))
            packages[name] = package(name, version, origin, complete=complete, held=is_held)
        self._gpu(packages=tuple(packages.values()))

    def _rebuild_initramfs(self, step, facts):
        kernels = (replace(one, old_initramfs=False) for one in self.facts.gpu.kernels)
        self._gpu(kernels=tuple(kernels))

    def _build_modules(self, step, facts):
        missing = step.missing(facts.gpu)
        command = build_command(self.wish.version, missing, is_open=step.is_open)
        assert commands_of(step, facts) == (command,)
        kernels = (
            replace(one, modules=(module(self.wish.version),)) if one.release in missing else one
            for one in self.facts.gpu.kernels
        )
        self._gpu(kernels=tuple(kernels))

    def _hold(self, step, facts):
        [command] = commands_of(step, facts)
        names = command.split()[2:]
        held = (replace(o, held=o.held or o.package in names) for o in self.facts.gpu.packages)
        self._gpu(packages=tuple(held))

    def _load_modules(self, step, facts):
        self.facts = replace(self.facts, driver=self.wish.version, gpu_modules="proprietary")
        self._gpu(
            loaded=("nvidia", "nvidia_uvm"),
            smi_problem=None,
            gpus=tuple(make_gpu_state() for _ in self.facts.gpu.devices),
        )

    def _start_units(self, step, facts):
        active = UnitFacts(load="loaded", active="active", enabled="enabled", stale=False)
        self.facts = replace(self.facts, units=self.facts.units | dict.fromkeys(step.units, active))


def rounds(host, killed_at=None):
    """
    Provision *host* as the engine does; with *killed_at* the run dies within that step.
    """
    disk, running = NvidiaDriver(wish=host.wish), LoadedDriver(wish=host.wish)
    taken = 0
    while taken < MANY:
        facts = host.look(disk)
        assert disk.refusal(facts) is None
        resource = disk if disk.difference(facts) is not None else running
        if resource.difference(facts) is None:
            return taken
        steps = resource.next_steps(facts)
        assert steps, "different, and nothing to do"
        assert not (resource is running and running.problem(facts))
        for step in steps:
            if taken == killed_at:
                host.break_off(step, facts)
                return taken
            host.take(step, facts)
            taken += 1
    raise AssertionError(f"no end: {host.done}")


def new_host(**gpu):
    return DriverHost(make_wish(), with_gpu(make_facts(), **gpu))


def test_a_bare_host_gets_its_driver_in_the_order_of_the_plan():
    """
    What decides on versions comes first, what runs comes last; the second run does nothing.
    """
    host = new_host()
    rounds(host)
    order = [kind for at, kind in enumerate(host.done) if kind not in host.done[:at]]
    assert order == [
        "place",
        "read_lists",
        "install",
        "build_modules",
        "hold",
        "rebuild_initramfs",
        "load_modules",
        "start_units",
    ]
    assert host.done.count("install") == 1
    assert rounds(host) == 0
    assert all(one.held for one in host.facts.gpu.packages if one.package != "dkms")


@pytest.mark.parametrize("step", range(14))
def test_a_run_that_was_killed_within_any_step_is_completed_by_the_next(step):
    """
    Two runs in a row may die; the host then is as after one run.
    """
    whole, host = new_host(), new_host()
    rounds(whole)
    rounds(host, killed_at=step)
    rounds(host, killed_at=2)
    rounds(host)
    assert host.facts.paths == whole.facts.paths
    assert set(host.facts.gpu.packages) == set(whole.facts.gpu.packages)
    assert host.facts.gpu.kernels == whole.facts.gpu.kernels


def test_killing_reaches_every_step():
    """
    Negative control: the test above stands for all steps of a run.
    """
    assert rounds(new_host()) <= 14


def installed():
    host = new_host()
    rounds(host)
    return host


TAMPERED = {
    "a hold is lifted": (
        lambda host: host._gpu(
            packages=tuple(replace(one, held=False) for one in host.facts.gpu.packages)
        ),
        {"hold"},
    ),
    "preferences are gone": (lambda host: host._files(PREFERENCES, None), {"place"}),
    "a new kernel was installed": (
        lambda host: host._gpu(
            kernels=(*host.facts.gpu.kernels, kernel("6.1.0-99-amd64", running=False))
        ),
        {"build_modules"},
    ),
    "a package was upgraded": (
        lambda host: host._gpu(
            packages=tuple(
                replace(one, version="535.400.01-1") if one.package == "libcuda1" else one
                for one in host.facts.gpu.packages
            )
        ),
        {"install"},
    ),
    "a library was unpacked and never configured": (
        lambda host: host._gpu(
            packages=tuple(
                replace(one, complete=one.package != "libnvidia-ml1")
                for one in host.facts.gpu.packages
            )
        ),
        {"install"},
    ),
    "the persistence daemon was stopped": (
        lambda host: setattr(
            host,
            "facts",
            replace(
                host.facts,
                units=host.facts.units
                | {PERSISTENCE_UNIT: UnitFacts("loaded", "inactive", "enabled", False)},
            ),
        ),
        {"start_units"},
    ),
    "nvidia-uvm was unloaded": (lambda host: host._gpu(loaded=("nvidia",)), {"load_modules"}),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_changed_on_a_host_is_found_and_mended(name):
    """
    By exactly the step that it takes.
    """
    change, kinds = TAMPERED[name]
    host = installed()
    change(host)
    host.done = []
    host._simulate = lambda query: simulated(("libcuda1", "535.400.01-1", "535.309.01-1"))
    rounds(host)
    assert kinds == set(host.done)


def test_the_resources_reach_the_worker_as_they_are():
    """
    They are sent as JSON; the keys of a repository are bytes that are no text.
    """
    keyring = bytes(range(256))
    wish = make_wish("580.178.04", source="nvidia").model_copy(update={"keyring": keyring})
    placed = (NvidiaDriver(wish=wish),)
    running = (LoadedDriver(wish=wish), GpuUnit(section=GpuSection(count=2, mig=False)))
    sent = ResourceSet(requirements=(), placed=placed, running=running)
    document = {"name": "n1", "address": "a", "ssh": {}, "route": []}
    request = WorkerRequest(
        packed_program=b"", hosts=(HostRequest(document=document, resources=sent, fence=1),)
    )
    read = WorkerRequest.model_validate_json(request.model_dump_json())
    assert read.hosts[0].resources == sent


# -- what no command mends


def problem(host):
    return LoadedDriver(wish=host.wish).problem(host.facts)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda h: h._gpu(loaded=("nouveau",)), "nouveau is loaded"),
        (lambda h: h._gpu(loaded=("nova_core",)), "nova_core is loaded"),
        (
            lambda h: h._gpu(
                loaded=(),
                kernels=(
                    kernel("6.1.0-40-amd64", modules=()),
                    kernel(running=False, modules=(module(),)),
                ),
            ),
            "the running kernel 6.1.0-40-amd64 has no modules 535.309.01",
        ),
        (
            lambda h: (
                setattr(h, "facts", replace(h.facts, driver="525.147.05")),
                h._gpu(holders=("nvidia-persiste (pid 4)", "python (pid 77)")),
            ),
            "525.147.05 is in use by python (pid 77)",
        ),
        (
            lambda h: (
                setattr(h, "facts", replace(h.facts, driver="535.309.01", gpu_modules="open")),
                h._gpu(holders=("python (pid 77)",)),
            ),
            "535.309.01 is in use by python (pid 77)",
        ),
    ],
)
def test_a_reboot_is_named_with_its_reason(change, why):
    host = installed()
    host.facts = replace(host.facts, driver=None)
    change(host)
    found = problem(host)
    assert found is not None
    assert "must be rebooted" in found.why
    assert why in found.why
    assert why in LoadedDriver(wish=host.wish).difference(host.facts).change
    # The host itself says that it needs a reboot: it ends OK, and --waves takes it.
    host.facts = replace(host.facts, reboot_reasons=(RebootReason("driver", why),))
    assert LoadedDriver(wish=host.wish).difference(host.facts) is None


def test_gpus_that_do_not_work_keep_nothing_but_the_slots_from_a_host():
    """
    The slots come after the driver, which they need.
    """
    spec = make_spec(row="torch-2.13-cu130", device="cuda", precision="bf16")
    spec = replace(spec, driver=DriverSection(version="580.178.04"))
    kinds = [resource.kind for resource in plan_resources(spec).running]
    own = ["loaded_driver", "gpu_unit", "compared_torch", "slot_unit", "slot_unit"]
    assert kinds[-5:] == own
    assert {"service", "enabled_units"} < set(kinds[:-4])


@pytest.mark.parametrize("fails", [False, True])
def test_daemons_that_ran_run_again_whether_the_modules_were_loaded_or_not(tmp_path, fails):
    """
    Also nvidia-dcgm, which no later step starts.
    """
    host = installed()
    facts = replace(host.facts, driver="525.147.05")
    [load] = [
        step
        for step in NvidiaDriver(wish=host.wish).plan(facts).steps
        if step.kind == "load_modules"
    ]
    programs = {
        "systemctl": 'echo "$@" >>LOG; [ "$1 $3" != "is-active nvidia-fabricmanager" ]',
        "modprobe": "exit 1" if fails else "exit 0",
        "nvidia-modprobe": "exit 0",
        "rmmod": "exit 1",
    }
    for name, text in programs.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text.replace('LOG', str(tmp_path / 'log'))}\n")
        program.chmod(0o755)
    [script] = commands_of(load, facts)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", script], env=env, check=False)
    assert done.returncode == fails
    said = (tmp_path / "log").read_text().splitlines()
    assert said[-2:] == [
        "stop nvidia-persistenced nvidia-fabricmanager nvidia-dcgm",
        "start nvidia-persistenced nvidia-dcgm",
    ]


@pytest.mark.parametrize(
    ("shown", "license_", "is_open", "again"),
    [
        ({"nvidia-current": "535.309.01"}, "NVIDIA", False, False),
        ({"nvidia-current": "535.309.01"}, "Dual MIT/GPL", True, False),
        ({"nvidia-current": "535.309.01"}, "Dual MIT/GPL", False, True),  # those of before
        ({"nvidia-current": "535.309.01"}, "NVIDIA", True, True),
        ({"nvidia-current": "525.147.05"}, "NVIDIA", False, True),  # DKMS takes them for installed
        ({}, "NVIDIA", False, True),
    ],
)
def test_modules_that_dkms_takes_for_installed_are_built_again(
    tmp_path, shown, license_, is_open, again
):
    """
    It was killed while it installed them, their files are damaged, or they are of the other
    flavour: autoinstall does nothing.
    """
    (tmp_path / "src/nvidia-current-535.309.01").mkdir(parents=True)
    cases = " ".join(f"{name}) echo {version} ;;" for name, version in shown.items())
    programs = {
        "systemctl": "exit 1",
        # As systemd does: of two dollar signs it takes one.
        "systemd-run": "while [ ${1#-} != $1 ]; do shift; done; shift; shift; "
        'exec sh -c "$(echo "$1" | sed \'s/[$][$]/$/g\')"',
        "modinfo": f"[ $4 = version ] || exec echo '{license_}'; "
        f"case $5 in {cases} *) exit 1 ;; esac",
        "dkms": f'echo "$@" >>{tmp_path}/log',
    }
    for name, text in programs.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    command = build_command("535.309.01", ("6.1.0-56-amd64",), is_open=is_open)
    command = command.replace("/usr/src", str(tmp_path / "src"))
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", command], env=env, check=False)
    assert done.returncode == 0
    module = "--force -m nvidia-current -v 535.309.01 -k 6.1.0-56-amd64"
    assert (tmp_path / "log").read_text().splitlines() == [
        "autoinstall -k 6.1.0-56-amd64",
        *([f"build {module}", f"install {module}"] if again else []),
    ]


def test_daemons_of_the_driver_need_no_reboot():
    """
    Negative control: they are stopped before the modules are changed.
    """
    host = installed()
    host.facts = replace(host.facts, driver="525.147.05")
    host._gpu(holders=("nvidia-persiste (pid 4)", "nv-hostengine (pid 5)"))
    assert problem(host) is None
    rounds(host)
    assert host.facts.driver == "535.309.01"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"library": "535.400.01"}, "libnvidia-ml is 535.400.01"),
        ({"library": None}, "libnvidia-ml is missing"),
        ({"smi_problem": "nvidia-smi: exit status 18"}, "exit status 18"),
        ({"gpus": ()}, "shows 0 GPUs, and the PCI bus has 1"),
    ],
)
def test_a_driver_that_is_installed_and_does_not_work_is_no_success(change, why):
    host = installed()
    assert problem(host) is None
    host._gpu(**change)
    assert why in problem(host).why


@pytest.mark.parametrize(
    ("states", "why"),
    [((), "not shown"), (("Completed", "In Progress"), "In Progress"), (("Completed",), None)],
)
def test_the_fabric_must_be_complete(states, why):
    """
    Ubuntu's archive, an NVSwitch, and the daemon runs.
    """
    host = DriverHost(make_wish("580.178.04"), make_facts("noble"))
    host._gpu(devices=(device(), device("22a3", 3, switch=True)))
    plan = NvidiaDriver(wish=host.wish).plan(host.facts)
    prove = plan.steps[-1]
    host.facts = replace(host.facts, driver="580.178.04")
    host._gpu(library="580.178.04", smi_problem=None, gpus=(make_gpu_state(),), fabric=states)
    assert (prove.problem(host.facts) is None) is (why is None)
    assert why is None or why in prove.problem(host.facts)
    [units] = [step.units for step in plan.steps if step.kind == "start_units"]
    assert units == (PERSISTENCE_UNIT, FABRIC_UNIT)


def test_the_check_shows_what_apt_would_do():
    """
    Before apt has read its lists, the check says that it is simulated later.
    """
    host, disk = new_host(), NvidiaDriver(wish=make_wish())
    assert "simulated once apt has read its lists" in disk.difference(host.look(disk)).change
    host._gpu(old_lists=False)
    text = disk.difference(host.look(disk)).change
    assert "nvidia-kernel-dkms 535.309.01-0+deb12u1" in text
    assert "(8 packages: nvidia-kernel-dkms" in text
    assert disk.plan(host.facts).digest[:12] in text
    # Killed when all was unpacked: apt's simulation shows no package.
    install = next(step for step in disk.plan(host.facts).steps if isinstance(step, Install))
    host.break_off(install, host.look(disk))
    text = disk.difference(host.look(disk)).change
    assert "(all unpacked: dpkg was interrupted)" in text


@pytest.mark.parametrize(
    ("version", "own"),
    [
        ("535.309.01-0+deb12u1", "535.309.01"),
        ("1:580.178.04-0ubuntu0.24.04.1", "580.178.04"),
        ("595.84", "595.84"),
    ],
)
def test_the_version_of_the_driver_is_part_of_that_of_the_package(version, own):
    assert upstream(version) == own
