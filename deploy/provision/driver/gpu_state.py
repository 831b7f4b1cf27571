"""
The state of the GPUs of a host: a unit applies it at boot, and every run looks at it.  Pure.
"""

from typing import Literal

from deploy.host import layout
from deploy.host.protocol import FactQuery, Facts, GpuState
from deploy.host.slots import systemd
from deploy.inventory.schema.gpu import GpuSection
from deploy.provision.driver.plan import gpu_of
from deploy.provision.requirements import HostRefusal, PinnedDriver, has_final_driver
from deploy.provision.resource import Difference, Resource
from deploy.templating import render

UNIT = "slipway-gpu.service"
UNIT_FILE = f"{layout.UNITS}/{UNIT}"
_WATT = 0.5  # nvidia-smi shows limits with two digits
_ON = {True: "on", False: "off", None: "not shown"}


def unit_text(section: GpuSection) -> str:
    """
    Return the text of the unit; where the section is empty it loads nvidia-uvm alone.
    """
    slots = [layout.unit(slot) for slot in layout.SLOTS]
    return render(UNIT, slots=slots, settings=_settings(section))


def _settings(section: GpuSection) -> list[str]:
    """
    Return options of nvidia-smi, a line each; those that take a reboot come first.
    """
    lines: list[str] = []
    if section.mig is False:
        lines.append("multi-instance-gpu=0")
    if section.ecc is not None:
        lines.append(f"ecc-config={int(section.ecc)}")
    if section.persistence is not None:
        lines.append(f"persistence-mode={int(section.persistence)}")
    if section.power_limit_w is not None:
        lines.append(f"power-limit={section.power_limit_w}")
    if section.clocks.min_mhz is not None:
        lines.append(f"lock-gpu-clocks={section.clocks.min_mhz},{section.clocks.max_mhz}")
    return lines


class GpuUnit(Resource):
    """
    The unit that loads nvidia-uvm and sets the GPUs: enabled, run since its last change, and the
    GPUs are as it sets them.

    What takes a reboot is no difference where the host reports that it needs one.
    """

    kind: Literal["gpu_unit"] = "gpu_unit"
    section: GpuSection
    driver: PinnedDriver | None = None

    @property
    def name(self) -> str:
        return UNIT

    @property
    def query(self) -> FactQuery:
        return FactQuery(units=(UNIT,), gpu=self._is_asked)

    @property
    def _is_asked(self) -> bool:
        return self.section != GpuSection()

    def refusal(self, facts: Facts) -> HostRefusal | None:
        if facts.units[UNIT].load == "masked":
            return HostRefusal(
                error="PreconditionError",
                why=f"masked for systemd, so it can never start: {UNIT}",
                fix=f"on the host: {systemd.unmask_command(UNIT)}",
            )
        if not self._is_asked or waits_for_driver(facts):
            return None
        gpus = gpu_of(facts).gpus  # empty: no driver is loaded yet, or `problem` names what fails
        return (self._missing(facts) if gpus else None) or self._power_refusal(gpus)

    def _power_refusal(self, gpus: tuple[GpuState, ...]) -> HostRefusal | None:
        wanted = self.section.power_limit_w
        for gpu in gpus:
            least, most = gpu.power_min_w, gpu.power_max_w
            if wanted is None or least is None or most is None or least <= wanted <= most:
                continue
            return HostRefusal(
                error="PreconditionError",
                why=f"gpu.power_limit_w is {wanted}; GPU {gpu.bus} takes {least:g} W to {most:g} W",
                fix="set gpu.power_limit_w to what all GPUs of the fleet take",
            )
        return None

    def difference(self, facts: Facts) -> Difference | None:
        unit = facts.units[UNIT]
        wrong = []
        if unit.enabled != "enabled":
            wrong.append("enable")
        if waits_for_driver(facts):
            return Difference(change="enable") if wrong else None
        if unit.active != "active" or unit.stale:
            wrong.append("run")
        wrong += self.settings_left(facts)
        if not facts.reboot_reasons:
            wrong += self.reboot_reasons(facts)
        problem = self._count_problem(facts)
        if problem is not None:
            wrong.append(problem)
        return Difference(change="; ".join(wrong)) if wrong else None

    def settings_left(self, facts: Facts) -> list[str]:
        """
        Return each setting that differs, and that the unit sets at once.
        """
        if not self._is_asked:
            return []
        return [text for gpu in gpu_of(facts).gpus for text in _settings_left(self.section, gpu)]

    def reboot_reasons(self, facts: Facts) -> list[str]:
        """
        Return each setting that was changed and is in force after a reboot.
        """
        if not self._is_asked:
            return []
        texts = []
        for gpu in gpu_of(facts).gpus:
            for what, wanted, now, following in (
                ("ECC", self.section.ecc, gpu.ecc, gpu.next_ecc),
                ("MIG", self.section.mig, gpu.mig, gpu.next_mig),
            ):
                if wanted is not None and now is not None and now != wanted == following:
                    texts.append(f"reboot: {what} of {gpu.bus} is {_ON[now]} until then")
        return texts

    def problem(self, facts: Facts) -> HostRefusal | None:
        """
        Return what the unit cannot mend.
        """
        if waits_for_driver(facts):
            return None
        missing = self._missing(facts)
        if missing is not None:
            return missing
        reboots = self.reboot_reasons(facts)
        if reboots and not self.settings_left(facts) and not facts.reboot_reasons:
            return HostRefusal(
                error="PreconditionError",
                why="; ".join(reboots),
                fix="drain and reboot the host, then provision again",
            )
        return None

    def _missing(self, facts: Facts) -> HostRefusal | None:
        count = self._count_problem(facts)
        if count is None or not has_final_driver(self.driver, facts):
            return None
        return HostRefusal(
            error="PreconditionError",
            why=count,
            fix="dmesg and nvidia-smi on the host; a GPU that has fallen off the bus comes "
            "back with a reboot at most; else set gpu.count",
        )

    def _count_problem(self, facts: Facts) -> str | None:
        if self.section.count is None:
            return None
        gpu = gpu_of(facts)
        if len(gpu.gpus) == self.section.count:
            return None
        reason = f": {gpu.smi_problem}" if gpu.smi_problem else ""
        return f"GPUs of nvidia-smi: {len(gpu.gpus)}; gpu.count is {self.section.count}{reason}"


def waits_for_driver(facts: Facts) -> bool:
    """
    Return whether the driver runs after a reboot alone: until then no GPU can be set.
    """
    return any(one.cause == "driver" for one in facts.reboot_reasons)


def _settings_left(section: GpuSection, gpu: GpuState) -> list[str]:
    texts = []
    if section.persistence is not None and gpu.persistence != section.persistence:
        texts.append(
            f"persistence of {gpu.bus}: {_ON[gpu.persistence]} → {_ON[section.persistence]}"
        )
    wanted_w = section.power_limit_w
    if wanted_w is not None and (gpu.power_w is None or abs(gpu.power_w - wanted_w) > _WATT):
        now = "not shown" if gpu.power_w is None else f"{gpu.power_w:g} W"
        texts.append(f"power limit of {gpu.bus}: {now} → {wanted_w} W")
    for what, wanted, following in (
        ("ECC", section.ecc, gpu.next_ecc),
        ("MIG", section.mig, gpu.next_mig),
    ):
        # MIG is not shown on a GPU that has none, and is off there.
        is_off = what == "MIG" and following is None
        if wanted is not None and following != wanted and not is_off:
            texts.append(f"{what} of {gpu.bus}: {_ON[following]} → {_ON[wanted]}, after a reboot")
    return texts
