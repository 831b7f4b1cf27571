"""
The text of a desired state names each host once, and says nothing that its waves do not have.
"""

import json
import tracemalloc
from dataclasses import replace

import pytest

from deploy.errors import PreconditionError
from deploy.host.protocol import STATE_MAX
from deploy.release.desired import Desired, Goal, Ruling
from deploy.release.desired_text import from_text, to_text
from deploy.release.plan import FLEET, plan_release
from tests.builders import make_observed, make_policy, make_settled

BUNDLE = "2" * 64


def make_desired(count, bare=()):
    """
    A release to *count* hosts after its last verdict; nothing serves on those of *bare*.
    """
    names = [f"gpu-{number:04d}" for number in range(count)]
    make = {name: make_observed if name in bare else make_settled for name in names}
    plan = plan_release(
        fleet="lab",
        bundle=BUNDLE,
        version="v2",
        canary_pct=10,
        policy=make_policy(waves=[1, "50%", "100%"]),
        observed={name: make[name](name) for name in names},
    )
    rulings = [
        Ruling(number, wave, "pass", "all", "it passed", 9, 0, 0, 1.0)
        for number, wave in enumerate([plan.waves[0], plan.waves[1], plan.waves[2]], 1)
    ]
    rulings.append(Ruling(FLEET, tuple(names), "pass", "all", "it passed", 9, 0, 0, 1.0))
    return Desired("r-v2", "me@desk", Goal.FORWARD, plan, rulings=tuple(rulings))


def test_hosts_that_differ_are_read_back_as_they_were():
    desired = make_desired(9, bare=("gpu-0001", "gpu-0002", "gpu-0007"))
    some = replace(desired.rulings[3], hosts=("gpu-0000", "gpu-0003", "gpu-0004"))
    desired = replace(desired, rulings=(*desired.rulings[:3], some))

    read = from_text(to_text(desired), 0, 0)

    assert read == desired
    assert read.plan.digest == desired.plan.digest


def test_a_host_costs_its_name_alone():
    """
    Each of 1,000 hosts stores it at each step: at 300 bytes a host, 300 MB are sent a step.
    """
    small, large = (len(to_text(make_desired(count))) for count in (100, 1000))

    assert (large - small) / 900 == pytest.approx(len('"gpu-0001",'), abs=0.1)
    assert large < 16 << 10


def test_a_retired_bundle_is_still_found_in_the_text():
    """
    Hosts keep every bundle whose digest the text has.
    """
    desired = make_desired(3)
    served = desired.plan.hosts[0].from_bundle

    assert served is not None
    assert BUNDLE in to_text(desired)
    assert served in to_text(desired)


@pytest.mark.parametrize(
    ("of", "runs"),
    [
        ("parts", [[0, 4]]),
        ("parts", [[0, 2]]),
        ("parts", [[0, 2], [1, 2]]),
        ("parts", [[0, 3, 1]]),
        ("parts", [[0]]),
        ("parts", [[0, 3], [3, 0]]),
        ("rulings", [[2, 2]]),
        ("rulings", [[0, 10**12]]),
        ("rulings", "all"),
    ],
)
def test_runs_that_are_not_of_its_hosts_are_refused(of, runs):
    document = json.loads(to_text(make_desired(3)))
    if of == "parts":
        document["plan"]["parts"][0]["at"] = runs
    else:
        document["rulings"][0]["hosts"] = runs

    with pytest.raises(PreconditionError, match="cannot be read"):
        from_text(json.dumps(document), 0, 0)


@pytest.mark.parametrize("kind", ["long", "keys", "overlapping"])
def test_a_hostile_text_is_refused_before_it_is_spelled_out(kind):
    """
    Each of these took a GiB, or minutes, for one host's word.
    """
    document = json.loads(to_text(make_desired(2000)))
    [part] = document["plan"]["parts"]
    if kind == "long":
        document["reason"] = "x" * STATE_MAX
    elif kind == "keys":
        part["fields"] |= {f"k{n}": 0 for n in range(20_000)}
    else:
        document["plan"]["parts"] = [part] * 500
    text = json.dumps(document)
    assert (len(text) > STATE_MAX) is (kind == "long")

    tracemalloc.start()
    with pytest.raises(PreconditionError, match="cannot be read"):
        from_text(text, 0, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 64 << 20


def test_verdicts_do_not_name_hosts_without_end():
    """
    A run takes a few bytes, and names any number of hosts.
    """
    document = json.loads(to_text(make_desired(3)))
    document["rulings"] = [document["rulings"][3]] * 1000

    with pytest.raises(PreconditionError, match="more hosts than its waves"):
        from_text(json.dumps(document), 0, 0)
