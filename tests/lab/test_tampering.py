"""
Every attribute of every resource of a booted host, changed one at a time: all are found, and mended
or named with their remedy.  The changes are made from the list of resources: `tests/tampering.py`.

Each change is looked for by itself.  What was found is mended together, one field at a time; with
SLIPWAY_TAMPERING_EACH=1 each change is mended by itself.
"""

import itertools
import os

import pytest

from deploy.bundle.host_program import build_host_program
from deploy.host import layout
from deploy.provision import provision
from deploy.provision.differences import fact_query, refusal_of, steps_to
from deploy.provision.fleet_specs import resource_sets
from deploy.provision.probe import pack_program, read_facts
from deploy.transport.ssh import SshTransport
from tests.lab.conftest import say
from tests.lab.own_lab import booted_lab
from tests.lab.provision_fixtures import ENV, World
from tests.tampering import kept, tampering_of

HOST = "n1"
IS_EACH = bool(os.environ.get("SLIPWAY_TAMPERING_EACH"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with booted_lab("tampering", 1) as config:
        one = World(config, tmp_path_factory.mktemp("fleet"))
        report = provision(one.fleet(HOST), progress=lambda _: None, env=ENV)
        assert report.ok == (HOST,), report.failed
        yield one


class Look:
    """
    Compares the host with its resources, over one connection.
    """

    def __init__(self, fleet):
        self.wanted = resource_sets(fleet, build_host_program(), ENV)[HOST]
        self._transport = SshTransport(fleet.hosts[0])
        self._packed = pack_program()

    def __enter__(self):
        self._transport.connect()
        return self

    def __exit__(self, *_):
        self._transport.close()

    def differences(self):
        """
        Return the change of each resource that differs, by name, and the refusal or None.
        """
        facts = read_facts(
            self._transport,
            sudo=False,
            packed_program=self._packed,
            query=fact_query(self.wanted),
            timeout_s=120.0,
        )
        steps = steps_to(self.wanted, facts)
        changes = {step.resource.name: step.difference.change for step in steps}
        return changes, refusal_of(self.wanted, facts)

    def tamperings(self):
        """
        Return all of them but those of directories that hold what others place.
        """
        holding = kept(self.wanted)
        everything = (*self.wanted.placed, *self.wanted.running)
        return [
            tampering
            for resource in everything
            for tampering in tampering_of(resource)
            if not (resource.kind == "directory" and resource.path in holding
                    and tampering.field in ("path", "type", "type file"))
        ]  # fmt: skip


def mend(world):
    """
    Provision the host again and return what failed.
    """
    return provision(world.fleet(HOST), progress=lambda _: None, env=ENV).failed


def test_a_provisioned_host_is_as_pinned(world):
    with Look(world.fleet(HOST)) as look:
        assert look.differences() == ({}, None)


@pytest.mark.timeout(3600)
def test_every_change_is_found_and_mended_or_named(world):
    with Look(world.fleet(HOST)) as look:
        tamperings = sorted(look.tamperings(), key=lambda one: one.field)
        missed, wrong = [], []
        for field, group in itertools.groupby(tamperings, key=lambda one: one.field):
            say(f"{field}; so far {len(missed)} missed, {len(wrong)} wrong")
            for batch in _batches(list(group)):
                for tampering in batch:
                    world.inside(HOST, tampering.script)
                    changes, refusal = look.differences()
                    if tampering.resource not in changes and refusal is None:
                        missed.append(str(tampering))
                    if (refusal is not None) is not tampering.is_named:
                        wrong.append((str(tampering), refusal))
                    if tampering.undo:
                        world.inside(HOST, tampering.undo)
                failed = mend(world)
                changes, refusal = look.differences()
                if failed or changes or refusal:
                    wrong.append((field, failed, changes, refusal))
        say(f"{len(tamperings)} changes, {len(missed)} missed, {len(wrong)} wrong")
        assert (missed, wrong) == ([], [])


def _batches(group):
    # Two that stand in the way of something are not told apart: the first of them is named.
    if IS_EACH or any(tampering.is_named for tampering in group):
        return [[tampering] for tampering in group]
    return [group]


def test_a_python_that_is_gone_is_installed_again(world):
    """
    No fact of the host can be read without it.
    """
    world.inside(HOST, "rm $(readlink -f /usr/bin/python3)")
    report = provision(world.fleet(HOST), progress=lambda _: None, env=ENV)
    assert report.ok == (HOST,), report.failed


def test_a_deep_look_finds_what_keeps_size_and_times(world):
    """
    As of a disk that returns other bytes: the record is made to fit the times.
    """
    venv = f"$(echo {layout.VENVS}/*)"
    module = f"$(find {venv}/lib -name '*.py' -size +1k | sort | head -n 1)"
    world.inside(HOST, f"cp -p {module} /root/module; printf '\\001' | dd of={module} conv=notrunc")
    script = (
        "import json,sys;sys.path.insert(0,sys.argv[1]);from pathlib import Path;"
        "from deploy.host import tree;top=Path(sys.argv[2]);"
        "lines=(top/'.files').read_text().splitlines()[1:];"
        "old={name:sha256 for name,_,sha256 in map(json.loads,lines)};now=tree._entries(top);"
        "out=[tree._stamp(tree._entries(top,is_fast=True))];"
        "out+=[json.dumps([name,entry,old[name]]) for name,entry in now.items()];"
        "(top/'.files').write_text(chr(10).join(out)+chr(10))"
    )
    world.inside(HOST, f'python3 -I -c "{script}" {layout.HOST_PROGRAM} {venv}')
    fleet = world.fleet(HOST)
    report = provision(fleet, check=True, progress=lambda _: None, env=ENV)
    assert report.changes == ()
    report = provision(fleet, check=True, deep=True, progress=lambda _: None, env=ENV)
    assert "1 of its files are not as recorded" in report.changes[0].change
    report = provision(fleet, deep=True, progress=lambda _: None, env=ENV)
    assert report.ok == (HOST,), report.failed
    assert provision(fleet, deep=True, progress=lambda _: None, env=ENV).changes == ()
