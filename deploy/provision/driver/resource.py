"""
The driver of a host as two resources: what is on the disk, and what runs from it.
"""

from typing import Literal

from deploy.host.protocol import FactQuery, Facts
from deploy.provision.driver.conflicts import DISK_PATHS
from deploy.provision.driver.plan import (
    FABRIC_UNIT,
    OWN_FILES,
    PERSISTENCE_UNIT,
    AnyStep,
    BuildModules,
    Conflict,
    DriverPlan,
    DriverWish,
    Install,
    LoadModules,
    Prove,
    gpu_of,
    needed_kernels,
)
from deploy.provision.driver.planner import plan_driver
from deploy.provision.requirements import HostRefusal
from deploy.provision.resource import Difference, Resource

# A hash that no file has: the host then says which one it has.
_ANY = "0" * 64
# Programs that hold a device and are stopped before the modules are changed, as the kernel cuts
# their names.
_DAEMONS = ("nvidia-persiste", "nv-fabricmanage", "nv-hostengine")
_SHOWN = 8  # packages of a transaction that are listed by name


class DriverResource(Resource):
    wish: DriverWish

    @property
    def query(self) -> FactQuery:
        return FactQuery(
            gpu=True,
            paths=dict.fromkeys(OWN_FILES, _ANY),
            room=DISK_PATHS,
            units=(PERSISTENCE_UNIT, FABRIC_UNIT),
        )

    def plan(self, facts: Facts) -> DriverPlan | tuple[Conflict, ...]:
        return plan_driver(self.wish, facts)

    def refusal(self, facts: Facts) -> HostRefusal | None:
        conflicts = self.plan(facts)
        if isinstance(conflicts, DriverPlan):
            return None
        return HostRefusal(
            error="PreconditionError",
            why="; ".join(one.why for one in conflicts),
            fix="; ".join(one.fix for one in conflicts),
        )


class NvidiaDriver(DriverResource):
    """
    Repository, preferences, packages, kernel modules and holds of the driver.
    """

    kind: Literal["nvidia_driver"] = "nvidia_driver"

    @property
    def name(self) -> str:
        return f"NVIDIA driver {self.wish.version}"

    def follow_up(self, facts: Facts) -> FactQuery | None:
        """
        Return the query that has apt simulate the transaction; None: there is none, or apt has not
        read the lists that it needs.
        """
        plan = self.plan(facts)
        if not isinstance(plan, DriverPlan) or plan.install.is_done(facts):
            return None
        if gpu_of(facts).old_lists or facts.simulation is not None:
            return None
        return FactQuery(install=plan.install.packages, pins=plan.pins)

    def next_steps(self, facts: Facts) -> tuple[AnyStep, ...]:
        """
        Return the steps that can be taken with *facts*: the transaction only once it is simulated.
        """
        plan = self.plan(facts)
        left = plan.left(facts, runs=False) if isinstance(plan, DriverPlan) else ()
        if facts.simulation is not None:
            return left
        waiting = next((at for at, step in enumerate(left) if isinstance(step, Install)), len(left))
        return left[:waiting]

    def difference(self, facts: Facts) -> Difference | None:
        plan = self.plan(facts)
        if not isinstance(plan, DriverPlan):
            return Difference(change="refused")  # `refusal` says why
        left = plan.left(facts, runs=False)
        if not left:
            return None
        texts = [_said(step, facts) for step in left]
        return Difference(change=f"{'; '.join(texts)} (plan {plan.digest[:12]})")


class LoadedDriver(DriverResource):
    """
    The kernel modules that are loaded, and the proof that the driver works.

    Where only a reboot loads the modules, and the host reports that it needs one, nothing differs:
    all of this waits for the reboot.
    """

    kind: Literal["loaded_driver"] = "loaded_driver"

    @property
    def name(self) -> str:
        return f"loaded NVIDIA driver {self.wish.version}"

    def difference(self, facts: Facts) -> Difference | None:
        plan = self.plan(facts)
        if not isinstance(plan, DriverPlan):
            return Difference(change="refused")
        left = plan.left(facts, runs=True)
        reboot = self.reboot_reason(facts)
        if not left or (reboot is not None and facts.reboot_reasons):
            return None  # the host is reported as needing a reboot; after it all is compared
        texts = [step.text for step in left]
        if reboot is not None:
            texts.insert(0, f"reboot, because {reboot}")
        return Difference(change="; ".join(texts))

    def next_steps(self, facts: Facts) -> tuple[AnyStep, ...]:
        plan = self.plan(facts)
        return plan.left(facts, runs=True) if isinstance(plan, DriverPlan) else ()

    def reboot_reason(self, facts: Facts) -> str | None:
        """
        Return why only a reboot loads the wanted modules; None: they are or can be loaded.
        """
        plan, gpu = self.plan(facts), gpu_of(facts)
        steps = plan.left(facts, runs=True) if isinstance(plan, DriverPlan) else ()
        if not isinstance(plan, DriverPlan) or not any(isinstance(s, LoadModules) for s in steps):
            return None
        others = [name for name in ("nouveau", "nova_core") if name in gpu.loaded]
        if others:
            return f"{' and '.join(others)} is loaded"
        build = next(step for step in plan.steps if isinstance(step, BuildModules))
        running = [kernel.release for kernel in needed_kernels(gpu) if kernel.running]
        if set(running) & set(build.missing(gpu)):
            return f"the running kernel {running[0]} has no modules {self.wish.version}"
        users = [one for one in gpu.holders if not one.startswith(_DAEMONS)]
        load = next(step for step in plan.steps if isinstance(step, LoadModules))
        if users and facts.driver is not None and not load.is_loaded(facts):
            return f"{facts.driver} is in use by {', '.join(users[:4])}"
        return None

    def problem(self, facts: Facts) -> HostRefusal | None:
        """
        Return what no command of provisioning mends.
        """
        reboot = self.reboot_reason(facts)
        if reboot is not None:
            return HostRefusal(
                error="PreconditionError",
                why=f"the host must be rebooted: {reboot}",
                fix="drain and reboot the host, then provision again",
            )
        left = self.next_steps(facts)
        if len(left) == 1 and isinstance(left[0], Prove):
            return HostRefusal(
                error="PreconditionError",
                why=f"the driver is installed, and {left[0].problem(facts)}",
                fix="dmesg and nvidia-smi on the host; reboot it if a GPU has fallen off the bus",
            )
        return None


def _said(step: AnyStep, facts: Facts) -> str:
    """
    Return the text of *step*, with what apt would do where it was simulated.
    """
    if not isinstance(step, Install):
        return step.text
    if facts.simulation is None:
        return f"{step.text} (simulated once apt has read its lists)"
    if not facts.simulation.changes:
        return f"{step.text} (all unpacked: dpkg was interrupted)"
    # Those that were asked for come first: the others follow from them.
    changes = sorted(facts.simulation.changes, key=lambda one: one.package not in step.packages)
    names = [f"{one.package} {one.after or 'removed'}" for one in changes]
    shown = ", ".join(names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    )
    return f"{step.text} ({len(changes)} packages: {shown})"
