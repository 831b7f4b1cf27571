"""
Every attribute of every file, directory and program that provisioning places, changed one at a
time: the real host program finds it, and the real commands mend it.

Units, packages and users need a booted host: tests/lab/test_tampering.py.
"""

import hashlib
import os
import subprocess
import typing
from pathlib import Path

import pytest

from deploy.host import facts as host_facts
from deploy.host.layout import Layout
from deploy.host.protocol import Call
from deploy.host.system import System
from deploy.inventory.schema import AptSource, Mirrors
from deploy.provision import operations
from deploy.provision.differences import fact_query, refusal_of, steps_to
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import Absent, AnyResource, Directory, File, Upload
from deploy.provision.slot_resources import Reserve, Socket
from deploy.wheelhouse import InterpreterPin
from tests.tampering import COVERED, NO_STATE, tampering_of
from tests.unit.deploy.provision.builders import make_resources

MIRRORS = Mirrors(apt=(AptSource(uris=("https://m.example.com/d",), distribution="debian"),))
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")

LOCAL = (Absent, Directory, File, Reserve, Socket, Upload)
KINDS = typing.get_args(typing.get_args(AnyResource)[0])
RESOURCES = make_resources()
EVERY = [*RESOURCES.placed, *RESOURCES.running]
ON_A_DATA_DISK = make_resources(storage_root="/data/slipway").placed
WITH_A_MIRROR = make_resources(mirrors=MIRRORS).placed
WITH_A_PYTHON = make_resources(interpreter=InterpreterPin("3.11", "3.11.9", "a", "c" * 64)).placed

# Kinds that no host of these tests has: with TLS, with a GPU.  Their own tests change them.
SHOWN_ELSEWHERE = {
    "compared_torch": "test_resources.py",
    "certificate": "test_certificate.py",
    "nvidia_driver": "driver/test_convergence.py",
    "loaded_driver": "driver/test_convergence.py",
    "gpu_unit": "driver/test_gpu_state.py",
}


class TemporaryTree:
    """
    The files of resources under a directory, read by the host program and changed by operations.
    """

    def __init__(self, root):
        self.root = root
        self.system = System(Layout("/"))

    def moved(self, resource):
        """
        Return *resource* with its paths under the root, and users of this machine.
        """
        changes = {"path": f"{self.root}{resource.path}"}
        for name in ("owner", "group"):
            if hasattr(resource, name):
                changes[name] = "root" if getattr(resource, name) == "root" else "daemon"
        if isinstance(resource, Upload):
            content = b"a program\n"
            source = self.root / "source"
            source.write_bytes(content)
            changes |= {"source": str(source), "size": len(content)}
            changes |= {"sha256": hashlib.sha256(content).hexdigest()}
            changes["link"] = f"{self.root}{resource.link}"
        if isinstance(resource, File):
            changes["check"] = None  # programs of a host
        return resource.model_copy(update=changes)

    def facts(self, resource):
        query = fact_query(_set_of(resource))
        return host_facts.run(self.system, Call(actor="test"), query)

    def apply(self, resource):
        """
        Run the commands that bring *resource* to its state.
        """
        Path(resource.path).parent.mkdir(parents=True, exist_ok=True)
        for command in _commands(resource, self.facts(resource)):
            stdin = b"".join(command.connector_arguments.get("_stdin", ()))
            subprocess.run(
                ["sh", "-c", command.get_raw_value()], input=stdin, check=True, capture_output=True
            )


def _set_of(resource):
    return ResourceSet(requirements=(), placed=(resource,), running=())


def _commands(resource, facts):
    match resource:
        case Directory():
            return operations.directory._inner(resource)
        case File():
            return operations.place._inner(resource)
        case Upload():
            return operations.upload._inner(resource, send=not resource.is_placed(facts))
        case Absent():
            return operations.remove._inner(resource.path)
        case Reserve():
            return operations.shell._inner([operations.reserve_command(resource)])
        case Socket():
            return operations.shell._inner([operations.giving_command(resource)])


def sh(script):
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stderr}"


def _kinds_of_local():
    found = {}
    for resource in EVERY:
        if isinstance(resource, LOCAL):
            found.setdefault((resource.kind, getattr(resource, "mode", "")), resource)
    return list(found.values())


@pytest.mark.parametrize("resource", _kinds_of_local(), ids=lambda r: f"{r.kind} {r.name}")
def test_every_attribute_of_a_path_is_found_and_mended(tmp_path, resource):
    """
    One resource of each kind and mode; what is not mended is named with its remedy.
    """
    tree = TemporaryTree(tmp_path)
    moved = tree.moved(resource)
    if not isinstance(resource, Absent):
        tree.apply(moved)
    for tampering in tampering_of(resource, str(tmp_path)):
        assert steps_to(_set_of(moved), tree.facts(moved)) == (), f"before {tampering}"
        if tampering.field == "immutable" and not _has_flags(tmp_path):
            continue
        sh(tampering.script)
        facts = tree.facts(moved)
        steps, refusal = steps_to(_set_of(moved), facts), refusal_of(_set_of(moved), facts)
        assert steps, f"not found: {tampering}"
        assert (refusal is not None) is tampering.is_named, f"{tampering}: {refusal}"
        if tampering.is_named:
            assert moved.path in refusal.why
            sh(tampering.undo)
        tree.apply(moved)
        assert steps_to(_set_of(moved), tree.facts(moved)) == (), f"not mended: {tampering}"


def _has_flags(folder):
    probe = folder / "flags"
    probe.touch()
    done = subprocess.run(["chattr", "+i", probe], capture_output=True, check=False)
    subprocess.run(["chattr", "-i", probe], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.model_fields["kind"].default)
def test_every_field_is_changed(kind):
    """
    A new kind of resource, or a new field of one, needs its line in tests/tampering.py.
    """
    name = kind.model_fields["kind"].default
    sets = (*EVERY, *ON_A_DATA_DISK, *WITH_A_MIRROR, *WITH_A_PYTHON)
    found = [each for each in sets if isinstance(each, kind)]
    if name in SHOWN_ELSEWHERE:
        assert (Path(__file__).parent / SHOWN_ELSEWHERE[name]).exists()
        return
    assert found, f"no host has a resource of kind {name}"
    changed = {tampering.field for resource in found for tampering in tampering_of(resource)}
    fields = {*kind.model_fields} - {"kind"} - NO_STATE.get(name, set())
    covered = {field for field, by in COVERED.get(name, {}).items() if by in changed}
    assert fields - changed - covered == set()


def test_a_kind_without_tampering_would_be_noticed():
    """
    Negative control of the test above.
    """

    class Unknown(Absent):
        kind: typing.Literal["absent"] = "unknown"

    with pytest.raises(AssertionError, match="unknown"):
        tampering_of(Unknown.model_construct(kind="unknown", path="/x"))
