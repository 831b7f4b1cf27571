"""
The state of GPUs: what the unit sets, what a run finds, and what takes a reboot.
"""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from deploy.host.protocol import RebootReason, UnitFacts
from deploy.inventory.schema.gpu import DriverSection, GpuSection
from deploy.provision.driver.gpu_state import UNIT, GpuUnit, unit_text
from deploy.provision.operations import gpu_command
from tests.unit.deploy.provision.driver.builders import make_facts, make_gpu_state, with_gpu

RUN = UnitFacts(load="loaded", active="active", enabled="enabled", stale=False)


def facts_of(*gpus, unit=RUN, **changes):
    facts = replace(make_facts(), units={UNIT: unit})
    return with_gpu(facts, gpus=gpus, smi_problem=None, **changes)


def change(section, facts):
    found = GpuUnit(section=GpuSection.model_validate(section)).difference(facts)
    return found.change if found else None


@pytest.mark.parametrize(
    ("section", "gpu", "text"),
    [
        ({"persistence": True}, {"persistence": False}, "persistence of"),
        ({"power_limit_w": 400}, {"power_w": 700.0}, "700 W → 400 W"),
        ({"power_limit_w": 400}, {"power_w": None}, "not shown → 400 W"),
        ({"ecc": False}, {}, "ECC of 00000000:1B:00.0: on → off, after a reboot"),
        ({"ecc": False}, {"next_ecc": False}, "reboot: ECC of 00000000:1B:00.0 is on until then"),
        ({"mig": False}, {"mig": True, "next_mig": True}, "MIG of"),
        ({"mig": False}, {"mig": True, "next_mig": False}, "reboot: MIG"),
    ],
)
def test_each_setting_that_differs_is_shown(section, gpu, text):
    """
    And nothing is, once it does not.
    """
    assert text in change(section, facts_of(make_gpu_state(**gpu)))


@pytest.mark.parametrize(
    ("section", "gpu"),
    [
        ({}, {"persistence": False, "power_w": 1.0, "ecc": None, "mig": True}),
        ({"persistence": True, "power_limit_w": 700, "ecc": True, "mig": False}, {}),
        ({"power_limit_w": 700}, {"power_w": 700.4}),
        ({"mig": False}, {"mig": None, "next_mig": None}),
        ({"clocks": {"min_mhz": 200, "max_mhz": 300}}, {}),
    ],
)
def test_a_gpu_as_the_file_says_is_left_alone(section, gpu):
    assert change(section, facts_of(make_gpu_state(**gpu))) is None


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        (replace(RUN, enabled="disabled"), "enable"),
        (replace(RUN, active="failed"), "run"),
        (replace(RUN, stale=True), "run"),
    ],
)
def test_the_unit_is_enabled_and_has_run_since_its_last_change(unit, text):
    assert change({}, facts_of(make_gpu_state(), unit=unit)) == text


def test_a_masked_unit_is_refused():
    unit = GpuUnit(section=GpuSection())
    assert "unmask" in unit.refusal(facts_of(unit=replace(RUN, load="masked"))).fix
    assert unit.refusal(facts_of()) is None


def test_another_number_of_gpus_is_named_and_never_mended():
    unit = GpuUnit(section=GpuSection(count=2))
    facts = facts_of(make_gpu_state())
    assert "GPUs of nvidia-smi: 1; gpu.count is 2" in unit.difference(facts).change
    assert "gpu.count" in unit.problem(facts).fix
    two = facts_of(make_gpu_state(), make_gpu_state())
    assert (unit.difference(two), unit.problem(two)) == (None, None)


def test_a_missing_gpu_is_refused_before_the_host_is_changed():
    """
    Where nvidia-smi shows none, the driver may be what this run installs.
    """
    unit = GpuUnit(section=GpuSection(count=2))
    assert "gpu.count is 2" in unit.refusal(facts_of(make_gpu_state())).why
    assert unit.refusal(facts_of()) is None
    assert unit.refusal(facts_of(make_gpu_state(), make_gpu_state())) is None


@pytest.mark.parametrize(
    ("watts", "is_refused"), [(199, True), (200, False), (700, False), (701, True)]
)
def test_a_power_limit_that_the_gpu_does_not_take_is_refused(watts, is_refused):
    """
    The unit would fail with it, after all else was changed.
    """
    found = GpuUnit(section=GpuSection(power_limit_w=watts)).refusal(facts_of(make_gpu_state()))
    assert (found is not None) == is_refused
    if found:
        assert found.why == (
            f"gpu.power_limit_w is {watts}; GPU 00000000:1B:00.0 takes 200 W to 700 W"
        )
    unknown = facts_of(make_gpu_state(power_min_w=None, power_max_w=None))
    assert GpuUnit(section=GpuSection(power_limit_w=watts)).refusal(unknown) is None


def test_a_reboot_is_asked_for_once_nothing_else_is_left():
    unit = GpuUnit(section=GpuSection(ecc=False, power_limit_w=400))
    waiting = make_gpu_state(next_ecc=False)
    assert unit.problem(facts_of(waiting)) is None
    found = unit.problem(facts_of(replace(waiting, power_w=400.0)))
    assert "ECC" in found.why
    assert "reboot" in found.fix


def test_what_the_host_reports_as_needing_a_reboot_waits_for_it():
    """
    The run goes on to its waves.  Other settings are set before.
    """
    unit = GpuUnit(section=GpuSection(ecc=False, power_limit_w=400))
    needs = (RebootReason("gpu", "ECC"),)
    facts = replace(facts_of(make_gpu_state(next_ecc=False)), reboot_reasons=needs)
    assert unit.difference(facts).change == "power limit of 00000000:1B:00.0: 700 W → 400 W"
    set_ = facts_of(make_gpu_state(next_ecc=False, power_w=400.0))
    assert unit.difference(set_) is not None
    set_ = replace(set_, reboot_reasons=needs)
    assert (unit.difference(set_), unit.problem(set_)) == (None, None)


def test_no_gpu_is_set_before_the_reboot_that_its_driver_needs():
    unit = GpuUnit(section=GpuSection(count=1, ecc=False))
    facts = facts_of(unit=replace(RUN, active="failed", enabled="disabled"))
    assert "run" in unit.difference(facts).change
    facts = replace(facts, reboot_reasons=(RebootReason("driver", "nouveau is loaded"),))
    assert unit.difference(facts).change == "enable"
    assert unit.problem(facts) is None
    assert "restart" not in gpu_command(facts)
    assert unit.difference(replace(facts, units={UNIT: RUN})) is None


def test_gpus_are_asked_for_only_where_the_file_says_something_of_them():
    assert not GpuUnit(section=GpuSection()).query.gpu
    assert GpuUnit(section=GpuSection(count=1)).query.gpu


def test_what_takes_a_reboot_is_set_first():
    """
    A limit of power that a GPU refuses fails the unit, and ECC was set all the same.
    """
    text = unit_text(GpuSection(ecc=True, power_limit_w=400, mig=False))
    lines = [line for line in text.splitlines() if line.startswith("ExecStart=/usr/bin/nvidia-smi")]
    assert [line.rpartition("--")[2] for line in lines] == [
        "multi-instance-gpu=0",
        "ecc-config=1",
        "power-limit=400",
    ]
    assert "nvidia-smi" not in unit_text(GpuSection())


@pytest.mark.parametrize(
    ("model", "keys", "words"),
    [
        (DriverSection, {"version": 580.178}, "string"),
        (DriverSection, {"version": "580"}, "whole version"),
        (DriverSection, {"version": "580.178.04; reboot"}, "whole version"),
        (DriverSection, {"version": "580.178.04\n"}, "whole version"),
        (DriverSection, {"source": "nvidia"}, "needs version"),
        (DriverSection, {"version": "580.178.04", "source": "nvidia"}, "repository and keyring"),
        (DriverSection, {"version": "580.178.04", "cuda_toolkit": "12.8"}, "source: nvidia"),
        (DriverSection, {"version": "580.178.04", "keyring": "/k.gpg"}, "source: nvidia"),
        (
            DriverSection,
            {
                "version": "580.178.04",
                "source": "nvidia",
                "repository": "https://m.example.com/r",
                "keyring": "/k.gpg",
                "build": "prebuilt",
            },
            "prebuilt",
        ),
        (GpuSection, {"mig": True}, "False"),
        (GpuSection, {"clocks": {"min_mhz": 1200}}, "belong together"),
        (GpuSection, {"clocks": {"min_mhz": 1800, "max_mhz": 1200}}, "below min_mhz"),
        (GpuSection, {"power_limit_w": 0}, "greater"),
        (GpuSection, {"persistence": "on"}, "boolean"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(model, keys, words):
    with pytest.raises(ValidationError, match=words):
        model.model_validate(keys, strict=model is GpuSection)
