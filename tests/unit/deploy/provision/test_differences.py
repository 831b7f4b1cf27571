from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.host import layout
from deploy.host.protocol import (
    Call,
    FactQuery,
    LeaseStatus,
    Listener,
    Pending,
    RebootReason,
    UnitFacts,
)
from deploy.host.rpc import encode_request
from deploy.inventory.schema.gpu import GpuSection
from deploy.provision.apt_packages import Packages
from deploy.provision.differences import (
    bootstrap_steps,
    fact_query,
    merge_queries,
    next_steps,
    refusal_of,
    steps_to,
)
from deploy.provision.driver.gpu_state import UNIT, GpuUnit
from deploy.provision.requirements import Driver, GpusPresent, PinnedDriver
from tests.unit.deploy.provision.builders import MAC_KEY, bare, find, make_facts, make_resources
from tests.unit.deploy.provision.driver.builders import make_gpu, make_gpu_state

RESOURCES = make_resources()
GOOD = make_facts(RESOURCES)


def names(steps):
    return [step.resource.name for step in steps]


def test_a_host_that_matches_has_no_steps():
    """
    So the second run changes nothing.
    """
    assert steps_to(RESOURCES, GOOD) == ()
    assert next_steps(RESOURCES, GOOD) == ()
    assert refusal_of(RESOURCES, GOOD) is None


def test_a_bare_host_gets_every_resource():
    """
    Except what only a running slot has, and what must not be there.
    """
    steps = steps_to(RESOURCES, bare(RESOURCES))
    others = ("socket", "slot_unit", "absent", "apt_sources")
    wanted = (r for r in (*RESOURCES.placed, *RESOURCES.running) if r.kind not in others)
    assert names(steps) == [r.name for r in wanted]


def test_names_of_resources_are_unique():
    """
    A change names exactly one resource.
    """
    names = [r.name for r in (*RESOURCES.placed, *RESOURCES.running)]
    assert len(names) == len(set(names))


@given(
    st.sets(
        st.sampled_from(
            sorted(
                path
                for resource in RESOURCES.placed
                for path in (*resource.query.paths, *resource.query.secrets)
                if GOOD.paths[path] is not None
            )
        )
    )
)
def test_only_missing_files_are_placed(gone):
    """
    For any set of missing files.
    """
    facts = replace(GOOD, paths=GOOD.paths | dict.fromkeys(gone))
    resources = (*RESOURCES.placed, *RESOURCES.running)
    owners = [r.name for r in resources if {*r.query.paths, *r.query.secrets} & gone]
    assert names(steps_to(RESOURCES, facts)) == owners


def test_files_come_before_services():
    """
    While files differ, no service is reloaded: services are compared with later facts.
    """
    gone = {"/etc/haproxy/haproxy.cfg": None}
    stopped = GOOD.units | {
        layout.HAPROXY_UNIT: UnitFacts(
            load="loaded", active="failed", enabled="enabled", stale=False
        )
    }
    facts = replace(GOOD, paths=GOOD.paths | gone, units=stopped)
    assert names(next_steps(RESOURCES, facts)) == ["/etc/haproxy/haproxy.cfg"]
    healed = replace(facts, paths=GOOD.paths)
    assert names(next_steps(RESOURCES, healed)) == [layout.HAPROXY_UNIT]


def test_a_missed_reload_is_a_difference():
    """
    Of a run that died between the new file and the reload.
    """
    facts = replace(GOOD, haproxy="slipway 0123456789abcdef")
    [step] = next_steps(RESOURCES, facts)
    assert (step.resource.name, step.difference.change) == (layout.HAPROXY_UNIT, "reload")


def test_a_host_without_python_first_gets_packages():
    """
    Reading facts needs Python, so its packages and their sources come first, and nothing else.
    """
    steps = bootstrap_steps(RESOURCES)
    assert isinstance(steps[-1].resource, Packages)
    assert "python3" in steps[-1].difference.change
    assert names(steps[:-1]) == ["/etc/apt/apt.conf.d/90slipway"]


def test_one_query_asks_for_all_facts():
    """
    Those of each resource and each requirement of the host.
    """
    query = fact_query(RESOURCES)
    for part in (*RESOURCES.requirements, *RESOURCES.placed, *RESOURCES.running):
        assert merge_queries([query, part.query]) == query


def test_queries_are_merged_without_duplicates():
    """
    Every path, name and flag of either query is in the merged one, once and in order.
    """
    first = FactQuery(paths={"/a": ""}, packages=("x", "y"), port=80, units=("u",))
    second = FactQuery(paths={"/b": "1"}, packages=("y", "z"), haproxy=True)
    assert merge_queries([first, second]) == FactQuery(
        paths={"/a": "", "/b": "1"}, packages=("x", "y", "z"), units=("u",), port=80, haproxy=True
    )
    assert merge_queries([]) == FactQuery()


def test_a_hash_that_one_part_asks_for_is_asked_for():
    """
    Whatever the order of the parts.
    """
    parts = [FactQuery(paths={"/a": "1"}), FactQuery(paths={"/a": ""})]
    assert merge_queries(parts) == merge_queries(reversed(parts)) == parts[0]


def test_the_question_about_a_secret_says_nothing_of_it():
    """
    A question has the key of its run and nothing that depends on the secret.

    So it is the same for every secret, and a host that lacks the secret cannot test guesses.
    """
    query, other = fact_query(RESOURCES), fact_query(make_resources(tokens=("another",)))
    assert query.secrets == {layout.ENVIRONMENT: MAC_KEY}
    assert layout.ENVIRONMENT not in query.paths
    assert encode_request(query, Call(actor="x")) == encode_request(other, Call(actor="x"))


def test_a_question_that_depends_on_the_secret_would_be_noticed():
    """
    Negative control: with a hash of the content, the questions of two secrets differ.
    """
    first, second = (
        find(make_resources(tokens=(token,)), layout.ENVIRONMENT).model_copy(
            update={"mac_key": None}
        )
        for token in ("one", "another")
    )
    assert encode_request(first.query, Call(actor="x")) != encode_request(
        second.query, Call(actor="x")
    )


def test_a_secret_is_compared_by_its_mac():
    """
    The same content differs in nothing; another is new content; an answer under another key, such
    as one that was recorded in an earlier run, does not count.
    """
    secret = find(RESOURCES, layout.ENVIRONMENT)
    later = secret.model_copy(update={"mac_key": "d" * 64})
    older = secret.model_copy(update={"content": b"older"})
    for answer, change in (
        (secret.mac, None),
        (later.mac, "new content"),
        (older.mac, "new content"),
    ):
        facts = make_facts(RESOURCES)
        path = replace(facts.paths[layout.ENVIRONMENT], mac=answer)
        difference = secret.difference(replace(facts, paths=facts.paths | {secret.path: path}))
        assert (difference and difference.change) == change


def test_a_host_that_cannot_go_back_is_not_refused():
    """
    Negative control of the refusal below.
    """
    stuck = Pending("r7", 3, to_slot="green", from_slot="blue", left_s=0.0, is_stuck=True)
    assert refusal_of(RESOURCES, bare(RESOURCES, pending=stuck)) is None


@pytest.mark.parametrize("program", ["sshd", "systemd"])
def test_no_remedy_stops_the_way_to_the_host(program):
    """
    Where `service.port` is the port of SSH.
    """
    refusal = refusal_of(RESOURCES, bare(RESOURCES, listeners=(Listener(program=program, pid=7),)))
    assert (refusal.error, refusal.fix) == ("PortInUse", "set service.port to another")


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"listeners": (Listener(program="nginx", pid=7),)}, "PortInUse", "nginx (pid 7)"),
        ({"room": dict.fromkeys(GOOD.room, 2**20)}, "DiskTooSmall", "1.0MiB"),
        (
            {"lease": LeaseStatus("ann", "r7", fence=3, left_s=12.3)},
            "LeaseHeld",
            "ann",
        ),
        (
            {"pending": Pending("r7", 3, to_slot="green", from_slot="blue", left_s=0.0)},
            "PreconditionError",
            "release r7 is not confirmed on the host: it is going back to blue by itself",
        ),
        ({"pythons": ("3.9",), "codename": "bullseye"}, "PreconditionError", "bullseye"),
        ({"pythons": ("3.13",), "codename": "trixie"}, "PreconditionError", "3.11"),
        ({"machine": "aarch64"}, "PreconditionError", "aarch64"),
        ({"has_apt": False, "os_id": "fedora"}, "PreconditionError", "fedora"),
    ],
)
def test_an_unfit_host_is_refused(changes, error, word):
    """
    Before any change, with why and fix, if it does not meet a requirement.
    """
    refusal = refusal_of(RESOURCES, bare(RESOURCES, **changes))
    assert refusal is not None
    assert refusal.error == error
    assert word in refusal.why
    assert refusal.fix


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"pythons": ("3.12",), "codename": "noble", "os_id": "ubuntu"}, "3.11"),
        ({"listeners": (Listener(program="nginx", pid=7),)}, "nginx"),
        ({"machine": "aarch64"}, "aarch64"),
    ],
)
def test_requirements_hold_on_a_host_where_nothing_differs(changes, word):
    """
    A host that lost what its row needs is not good.
    """
    assert refusal_of(RESOURCES, GOOD) is None
    assert word in refusal_of(RESOURCES, replace(GOOD, **changes)).why


def test_a_converged_gpu_host_needs_its_driver():
    gpu = make_resources(row="torch-2.3-cu121")
    assert refusal_of(gpu, make_facts(gpu, driver="535.104.05")) is None
    assert "no NVIDIA driver" in refusal_of(gpu, make_facts(gpu, driver=None)).why


@pytest.mark.parametrize(
    ("driver", "count", "is_refused"),
    [("580.95.05", 2, False), ("580.95.05", 1, True), ("580.95.05", 0, True), (None, 0, False)],
)
def test_a_gpu_host_has_the_gpus_of_a_slot(driver, count, is_refused):
    """
    They are counted once the driver is loaded; without one, that is the refusal.
    """
    gpu = make_resources(row="torch-2.13-cu130", device="cuda", gpus=2)
    refusal = refusal_of(gpu, make_facts(gpu, driver=driver, gpu_count=count))
    assert (refusal is not None and "service.gpus is 2" in refusal.why) == is_refused


@pytest.mark.parametrize(
    ("driver", "modules", "waits", "is_refused"),
    [
        ("580.95.05", "open", False, True),
        ("575.57.08", "open", False, False),
        ("580.95.05", "proprietary", False, False),  # Blackwell has no GPU with them
        ("580.95.05", "open", True, False),
    ],
)
def test_gpus_that_the_pinned_driver_may_show_are_no_refusal(driver, modules, waits, is_refused):
    """
    Another driver than the loaded one is what this run, or the next boot, brings.
    """
    pinned = PinnedDriver(version="580.95.05", modules="open")
    reasons = (RebootReason("driver", "another is installed"),) if waits else ()
    facts = replace(
        GOOD,
        driver=driver,
        gpu_modules=modules,
        gpu_count=1,
        reboot_reasons=reasons,
        gpu=make_gpu(gpus=(make_gpu_state(),)),
        units={UNIT: UnitFacts(load="loaded", active="active", enabled="enabled", stale=False)},
    )
    for part in (
        GpusPresent(count=2, driver=pinned),
        GpuUnit(section=GpuSection(count=2), driver=pinned),
    ):
        assert (part.refusal(facts) is not None) is is_refused


@pytest.mark.parametrize(
    "changes",
    [
        {"lease": LeaseStatus("ann", "r7", fence=3, left_s=12.3)},
        {"room": dict.fromkeys(GOOD.room, 2**20)},
    ],
)
def test_a_host_where_nothing_differs_needs_no_lease_and_no_space(changes):
    """
    They are needed for changes: the same host with a difference is refused.
    """
    facts = replace(GOOD, **changes)
    assert refusal_of(RESOURCES, facts) is None
    gone = replace(facts, paths=facts.paths | {layout.HOST_CONFIG: None})
    assert refusal_of(RESOURCES, gone) is not None


def test_what_is_protected_is_named_before_anything_is_changed():
    """
    By its path, or by that of its directory; and only where it would have to be changed.
    """
    wrong = replace(GOOD.paths[layout.HOST_CONFIG], mode="0666")
    for held in (layout.HOST_CONFIG, layout.ETC):
        protected = replace(GOOD, immutable=(held,))
        assert refusal_of(RESOURCES, protected) is None
        facts = replace(protected, paths=GOOD.paths | {layout.HOST_CONFIG: wrong})
        refusal = refusal_of(RESOURCES, facts)
        assert f"{held} is protected" in refusal.why
        assert refusal.fix == f"on the host: chattr -i -a {held}; then: inv provision"


@pytest.mark.parametrize(
    ("path", "type_", "fix"),
    [
        (layout.OPT, "link", "mount --bind"),
        (layout.OPT, "file", f"mv {layout.OPT} {layout.OPT}.old"),
        (layout.HOST_CONFIG, "directory", f"mv {layout.HOST_CONFIG} {layout.HOST_CONFIG}.old"),
        (layout.DEADMAN_TESTED, "directory", "mv "),
        (f"{layout.STATE}/reserve", "directory", "mv "),
        (layout.UV, "directory", "mv "),
    ],
)
def test_what_stands_in_the_way_is_named_with_its_remedy(path, type_, fix):
    """
    It may be of use to somebody, so it is not deleted.
    """
    in_the_way = replace(GOOD.paths[path], type=type_, target="/srv/data")
    facts = replace(GOOD, paths=GOOD.paths | {path: in_the_way})
    refusal = refusal_of(RESOURCES, facts)
    assert path in refusal.why
    assert fix in refusal.fix


def test_a_link_in_place_of_a_file_is_replaced():
    link = replace(GOOD.paths[layout.HOST_CONFIG], type="link", target="/etc/passwd", sha256=None)
    facts = replace(GOOD, paths=GOOD.paths | {layout.HOST_CONFIG: link})
    assert refusal_of(RESOURCES, facts) is None
    assert names(next_steps(RESOURCES, facts)) == [layout.HOST_CONFIG]


def test_haproxy_itself_may_hold_the_port():
    """
    The port counts as free if HAProxy listens on it.
    """
    ours = (Listener(program="haproxy", pid=7),)
    assert refusal_of(RESOURCES, bare(RESOURCES, listeners=ours)) is None


def test_the_disk_needs_space_for_the_unpacked_wheels():
    """
    Space for the wheels alone is too little.
    """
    room = dict.fromkeys(GOOD.room, 600 * 2**20)
    refusal = refusal_of(RESOURCES, bare(RESOURCES, room=room))
    assert refusal is not None
    assert refusal.error == "DiskTooSmall"
    assert refusal_of(RESOURCES, make_facts(RESOURCES, room=room)) is None  # it is there already


@pytest.mark.parametrize(
    ("row", "driver", "fits"),
    [
        ("torch-2.3-cu121", None, False),
        ("torch-2.3-cu121", "530.30.02", False),
        ("torch-2.3-cu121", "535.104.05", True),
        ("torch-2.13-cu130", "535.309.01", False),
        ("torch-2.13-cu130", "580.65.05", False),
        ("torch-2.13-cu130", "580.65.06", True),
        ("torch-2.13-cu130", "595.71.05", True),
    ],
)
def test_a_gpu_row_requires_its_driver(row, driver, fits):
    """
    A row with CUDA needs its driver loaded; the CPU row needs none.
    """
    resource_set = make_resources(row=row)
    refusal = refusal_of(resource_set, bare(resource_set, driver=driver))
    assert (refusal is None) is fits
    assert refusal_of(RESOURCES, bare(RESOURCES, driver=None)) is None


@pytest.mark.parametrize("driver", [None, "535.309.01"])
def test_a_driver_that_debian_lacks_comes_from_nvidia(driver):
    """
    If the distribution has no driver that is new enough for the row, the fix names NVIDIA's
    repository.
    """
    requirement = Driver(row="torch-9.0-cu130", minimum="580.65.06")
    refusal = requirement.refusal(bare(RESOURCES, driver=driver))
    assert refusal is not None
    assert refusal.error == "PreconditionError"
    assert "row torch-9.0-cu130 needs 580.65.06 or later" in refusal.why
    assert "from NVIDIA's repository (Debian bookworm ends at 535" in refusal.fix
    assert "reboot" in refusal.fix


@pytest.mark.parametrize(
    ("minimum", "codename"), [("535", "bookworm"), ("525", "bookworm"), ("580.65.06", "sid")]
)
def test_a_driver_that_debian_has_comes_from_debian(minimum, codename):
    """
    Negative control: the fix names NVIDIA's repository only if the distribution's driver is too
    old.
    """
    requirement = Driver(row="torch-9.0-cu130", minimum=minimum)
    refusal = requirement.refusal(bare(RESOURCES, driver=None, codename=codename))
    assert refusal is not None
    assert "NVIDIA's own repository" not in refusal.fix


def test_only_missing_wheels_are_sent():
    """
    Missing on the host, or with a wrong size.
    """
    venv = find(RESOURCES, next(r.name for r in RESOURCES.placed if r.name.startswith("venv")))
    whole = {w.file: w.size for w in venv.wheels}
    gone = GOOD.paths | {venv.complete: None}
    there = replace(GOOD, paths=gone, listings={layout.WHEELHOUSE: whole})
    assert venv.missing(there) == ()
    assert venv.difference(there).change == "build 1 packages"
    short = {layout.WHEELHOUSE: {file: size - 1 for file, size in whole.items()}}
    assert venv.missing(replace(there, listings=short)) == venv.wheels


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"altered": ("a", "b", "c", "d"), "altered_count": 9},
            "9 of its files are not as recorded",
        ),
        ({"is_recorded": False}, "its files were not recorded"),
        (
            {"problem": "/usr/bin/python3.11 is gone"},
            "its Python does not run: /usr/bin/python3.11",
        ),
    ],
)
def test_an_altered_environment_is_built_again(changes, said):
    """
    The change names the cause, and some of the files.
    """
    venv = find(RESOURCES, next(r.name for r in RESOURCES.placed if r.name.startswith("venv")))
    found = replace(GOOD.venvs[venv.path], **changes)
    facts = replace(GOOD, venvs={venv.path: found})
    assert said in venv.difference(facts).change
    assert "build 1 packages" in venv.difference(facts).change
    assert venv.missing(replace(facts, listings={layout.WHEELHOUSE: {}})) == venv.wheels
    assert venv.damage(GOOD) is None


def test_a_sent_program_is_compared_by_its_hash():
    uv = find(RESOURCES, layout.UV)
    found = replace(GOOD.paths[uv.path], sha256="0" * 64)
    facts = replace(GOOD, paths=GOOD.paths | {uv.path: found})
    assert uv.difference(facts).change.endswith("its content differs")
    assert fact_query(RESOURCES).paths[uv.path] == uv.sha256


def test_an_environment_that_all_may_read_is_closed_without_sending():
    """
    An older release of slipway built it; its wheels may be gone by now.
    """
    venv = find(RESOURCES, next(r.name for r in RESOURCES.placed if r.name.startswith("venv")))
    found = replace(GOOD.paths[venv.path], mode="0755", group="root")
    there = replace(GOOD, paths=GOOD.paths | {venv.path: found}, listings={layout.WHEELHOUSE: {}})

    assert venv.difference(GOOD) is None
    assert venv.difference(there).change == ("owner root:root → root:slipway, mode 0755 → 0750")
    assert venv.missing(there) == ()
