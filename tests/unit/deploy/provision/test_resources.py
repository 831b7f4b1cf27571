import json
from dataclasses import replace

import pytest

from deploy.host import layout
from deploy.host.protocol import RebootReason
from deploy.host.slots import systemd
from deploy.provision.differences import next_steps
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import File
from tests.unit.deploy.provision.builders import (
    TOKEN,
    bare,
    find,
    make_facts,
    make_resources,
    path_like,
)

RESOURCES = make_resources()
GOOD = make_facts(RESOURCES)
UNIT = find(RESOURCES, "/etc/systemd/system/slipway-runtime@.service")


def change(resource, **changes):
    path = path_like(resource, **changes)
    facts = replace(GOOD, paths=GOOD.paths | {resource.path: path})
    return resource.difference(facts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "0600"}, "mode 0600 → 0644"),
        ({"owner": "slipway"}, "owner slipway:root → root:root"),
        ({"type": "link"}, "link → file"),
        ({"sha256": "0" * 64, "text": ""}, "new content"),
        ({"sha256": "0" * 64, "mode": "0666"}, "new content, mode 0666 → 0644"),
    ],
)
def test_a_change_names_the_old_and_the_new_value(changes, words):
    """
    Of owner, mode, type and content.
    """
    assert change(UNIT, **changes).change == words


def test_the_diff_shows_the_changed_lines():
    """
    For `--check`.
    """
    old = UNIT.content.decode().replace("Type=notify", "Type=exec")
    diff = change(UNIT, sha256="0" * 64, text=old).diff
    changed = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] != "+++"]
    assert "-Type=exec" in changed
    assert "+Type=notify" in changed


def test_a_secret_is_in_no_diff_and_no_repr():
    """
    Neither a diff, a change nor a repr has the content of a secret file.
    """
    secret = find(RESOURCES, layout.ENVIRONMENT)
    assert TOKEN.encode() in secret.content  # negative control: it is in there
    update = change(secret, mac="0" * 64, text="SLIPWAY_API_TOKENS=older")
    for difference in (update, secret.difference(bare(RESOURCES))):
        assert difference.diff is None
        assert TOKEN not in str(difference)
    assert TOKEN not in repr(secret)
    assert TOKEN not in repr(RESOURCES)
    assert "older" not in str(update)


def test_a_plain_file_that_is_new_shows_its_text():
    """
    Negative control of the test above: other content is shown.
    """
    assert "+Type=notify" in UNIT.difference(bare(RESOURCES)).diff


def test_a_resource_set_round_trips_to_the_worker():
    """
    Bytes included.
    """
    there = ResourceSet.model_validate_json(RESOURCES.model_dump_json())
    assert there == RESOURCES
    binary = File(path="/x", content=bytes(range(256)))
    assert File.model_validate(json.loads(binary.model_dump_json())) == binary


def test_a_directory_of_the_same_name_is_not_the_file():
    """
    The change names the type that is in the way.
    """
    directory = find(RESOURCES, layout.INCOMING)
    assert change(directory, type="file").change == "file → directory"


SOCKET = find(RESOURCES, "/run/slipway/blue/runtime.sock")
RESERVE = find(RESOURCES, "/var/lib/slipway/reserve")


def test_a_socket_of_an_earlier_release_is_given_to_haproxy():
    """
    A slot that was started as the user of all slots still listens on it.
    """
    old = change(SOCKET, type="other", owner="slipway", group="slipway", mode="0660")
    assert old.change == "owner slipway:slipway → haproxy:slipway, mode 0660 → 0600"
    assert change(SOCKET, type="other", owner="haproxy", group="slipway", mode="0600") is None


@pytest.mark.parametrize("type_", ["link", "file", "directory"])
def test_what_is_no_socket_is_left_alone(type_):
    """
    The link to the socket of a new slot, and what nobody expects there.
    """
    assert change(SOCKET, type=type_, owner="root", mode="0777") is None


def test_a_used_reserve_is_laid_again():
    """
    The change says how much is left of it.
    """
    assert change(RESERVE, size=1 << 20, mode="0600").change == (
        "reserve 4.0MiB: 1.0MiB is left of it"
    )
    assert change(RESERVE, mode="0600") is None
    gone = replace(GOOD, paths=GOOD.paths | {RESERVE.path: None})
    assert "nothing is left of it" in RESERVE.difference(gone).change


@pytest.mark.parametrize(
    ("resource", "unit"),
    [("systemd", "slipway-runtime@green.service"), ("haproxy.service", "haproxy.service")],
)
def test_a_masked_unit_is_named_with_its_remedy(resource, unit):
    """
    A reload does not change it, so provisioning would try for ever.
    """
    found = find(RESOURCES, resource)
    masked = replace(GOOD.units[unit], load="masked")

    refusal = found.refusal(replace(GOOD, units=GOOD.units | {unit: masked}))

    assert unit in refusal.why
    assert refusal.fix == f"on the host: {systemd.unmask_command(unit)}"
    assert found.refusal(GOOD) is None


GPU_RESOURCES = make_resources(row="torch-2.13-cu130", device="cuda", precision="bf16")


@pytest.mark.parametrize(
    ("uncompared", "facts", "differs"),
    [
        (True, {"gpus": ("NVIDIA H100 80GB HBM3",), "uvm": True}, True),
        (True, {"gpus": ("NVIDIA H100 80GB HBM3",)}, False),  # the unit of the GPUs loads it
        (False, {"gpus": ("NVIDIA H100 80GB HBM3",), "uvm": True}, False),
        (True, {}, False),  # no driver is loaded
        (
            True,
            {
                "gpus": ("NVIDIA H100 80GB HBM3",),
                "uvm": True,
                "reboot_reasons": (RebootReason("driver", "570.26 is loaded, 580.1 installed"),),
            },
            False,
        ),
    ],
)
def test_torch_is_compared_on_gpus_that_came_after_it(uncompared, facts, differs):
    """
    A host without a driver, or with one that waits for a reboot, is as pinned meanwhile.
    """
    [resource] = [r for r in GPU_RESOURCES.running if r.kind == "compared_torch"]
    found = make_facts(GPU_RESOURCES, **facts)
    path = resource.venv.path
    venv = replace(found.venvs[path], uncompared=uncompared)
    found = replace(found, venvs={path: venv})
    assert (resource.difference(found) is not None) is differs


@pytest.mark.parametrize("uncompared", [True, False])
def test_slots_start_in_the_round_in_which_torch_is_compared(uncompared):
    """
    Started in the round before, which loads the driver and nvidia_uvm, they could fill the GPUs.
    """
    found = make_facts(GPU_RESOURCES, gpus=("NVIDIA H100 80GB HBM3",))
    [compared] = [r for r in GPU_RESOURCES.running if r.kind == "compared_torch"]
    path, unit = compared.venv.path, "slipway-runtime@blue.service"
    stopped = replace(found.units[unit], enabled="enabled", active="inactive")
    gpu_unit = replace(found.units["slipway-gpu.service"], active="inactive")
    found = replace(
        found,
        venvs={path: replace(found.venvs[path], uncompared=uncompared)},
        units=found.units | {unit: stopped, "slipway-gpu.service": gpu_unit},
    )

    def kinds(facts):
        return [step.resource.kind for step in next_steps(GPU_RESOURCES, facts)]

    assert kinds(found) == (["gpu_unit"] if uncompared else ["gpu_unit", "slot_unit"])
    gpu_unit = replace(gpu_unit, active="active")
    loaded = replace(found, uvm=True, units=found.units | {"slipway-gpu.service": gpu_unit})
    assert kinds(loaded) == (["compared_torch"] if uncompared else []) + ["slot_unit"]


def test_a_row_without_cuda_compares_no_torch_on_gpus():
    assert "compared_torch" not in {resource.kind for resource in RESOURCES.running}
