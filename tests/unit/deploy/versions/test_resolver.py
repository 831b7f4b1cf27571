import random
from dataclasses import replace
from datetime import date
from functools import cache

import pytest

from deploy.versions import resolver, rules
from deploy.versions.catalog import load_catalog
from deploy.versions.policy import load_policy
from deploy.versions.question import parse_facts, parse_wish
from deploy.versions.resolution import DriverVerdict
from deploy.versions.resolver import resolve
from tests.unit.deploy.versions import brute_force

TODAY = date(2026, 11, 26)
DRIVERS = (
    "450.51.06", "450.80.02", "470.256.02", "510.39.01", "515.43.04", "520.61.05", "525.60.13",
    "525.60.11", "530.30.02", "535.161.08", "535", "550.54.14", "550.54.13", "560.35.05",
    "570.86.10", "R570", "575.57.08", "580.65.06", "580.65.05", "580", "590.48.01", "595.45.04",
    "595", "610.57.04", "620",
)  # fmt: skip
GPUS = ("P100", "P40", "V100", "T4", "A100", "A10", "RTX 3090", "L4", "L40S", "RTX 4090", "H100",
        "H200", "B200", "B300", "RTX 5090", "7.5", "8.0", "8.9", "10.3", "H100,A100",
        "V100,H100")  # fmt: skip
VALUES = {
    "torch": tuple(brute_force.facts()["torch"]),
    "cuda": ("11.6", "11.7", "11.8", "12.1", "12.4", "12.6", "12.8", "12.9", "13.0", "13.2", "cpu"),
    "python": ("3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15"),
    "driver": DRIVERS,
    "gpu": GPUS,
    "os": tuple(brute_force.facts()["systems"]),
    "modules": ("open", "proprietary"),
    "fabric_manager": ("535.161.08", "580.65.06"),
    "glibc": ("2.17", "2.27", "2.28"),
}
OFTEN = {"torch": 0.6, "cuda": 0.4, "python": 0.4, "driver": 0.6, "gpu": 0.6, "os": 0.4,
         "modules": 0.15, "fabric_manager": 0.08, "glibc": 0.1}  # fmt: skip


def generated(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        question = {
            key: rng.choice(values) for key, values in VALUES.items() if rng.random() < OFTEN[key]
        }
        if "os" not in question:
            question.pop("glibc", None)
        if "driver" not in question:
            question.pop("fabric_manager", None)
        if question.get("cuda") == "cpu":
            question.pop("gpu", None)
        yield question


QUESTIONS = [question for question in generated(230, 13) if question]


def ask(question, catalog=None):
    """
    Ask the product, through the parsers of its flags where it has one.
    """
    catalog = catalog or load_catalog()
    flags = {key: question.get(key, "") for key in ("torch", "cuda", "python")}
    known = {key: question.get(key, "") for key in ("driver", "gpu", "os")}
    host = parse_facts(catalog, **known)
    if "glibc" in question:
        host = replace(
            host, distribution=host.distribution.model_copy(update={"glibc": question["glibc"]})
        )
    if "modules" in question:
        host = replace(host, modules=question["modules"])
    if "fabric_manager" in question:
        host = replace(host, has_nvswitch=True, fabric_manager=question["fabric_manager"])
    return resolve(catalog, load_policy(), parse_wish(catalog, **flags), host, today=TODAY)


def told(resolution):
    """
    Return {(minor, build): verdict} of the rows that fit.
    """
    return {
        (fit.release.minor, fit.build.build): str(fit.verdict or "none")
        if fit.verdict is not DriverVerdict.OK
        else "ok"
        for fit in resolution.fits
    }


def wanted(question):
    return {(minor, build): verdict for minor, build, _, verdict in brute_force.answer(question)}


def test_there_are_enough_questions_of_each_kind():
    """
    Two hundred, of which many have an answer, many have none, and every verdict occurs.
    """
    answers = [wanted(question) for question in QUESTIONS]
    assert len(QUESTIONS) >= 200
    assert 60 < sum(map(bool, answers)) < len(QUESTIONS) - 60
    verdicts = {verdict for found in answers for verdict in found.values()}
    assert verdicts == {"ok", "ok_minor", "ok_compat", "none"}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: " ".join(f"{k}={q[k]}" for k in q))
def test_an_answer_is_that_of_the_brute_force(question):
    """
    Rows, verdicts, Pythons, conflicts and the pins to change are those of trying everything.
    """
    resolution = ask(question)
    rows = brute_force.answer(question)
    assert told(resolution) == wanted(question)
    for fit in resolution.fits:
        minor = fit.release.minor
        pythons = {p for m, build, p, _ in rows if (m, build) == (minor, fit.build.build)}
        assert fit.python in pythons
        best = {
            p
            for p in pythons
            if brute_force.is_official(minor, p) and brute_force.has_triton(minor, p)
        }
        assert fit.python in best or not best
        system = question.get("os") and brute_force.facts()["systems"][question["os"]]["python"]
        assert fit.python == system or system not in best
    if resolution.fits:
        assert (resolution.conflicts, resolution.nearest) == ((), ())
        return
    assert {frozenset(c.pins) for c in resolution.conflicts} == brute_force.conflicts(question)
    assert {frozenset(n.changed) for n in resolution.nearest} == brute_force.changes(question)
    for near in resolution.nearest:
        left = {key: value for key, value in question.items() if key not in near.changed}
        if "os" in near.changed:
            left.pop("glibc", None)
        with_cpu = question.get("cuda") == "cpu"
        row = (near.fit.release.minor, near.fit.build.build, near.fit.python)
        assert row in {found[:3] for found in brute_force.rows(left, with_cpu=with_cpu)}
    assert all(conflict.why for conflict in resolution.conflicts)


POLICY = ("torch", "cuda", "driver")
PICKED = [
    # The three rows of policy: at it, just below it, and NVIDIA's own floor.
    ({"torch": "1.13", "cuda": "11.7", "driver": "515.43.04"}, "torch-1.13-cu117", "ok"),
    ({"torch": "1.13", "cuda": "11.7", "driver": "510.108.03"}, None, {POLICY}),
    ({"torch": "2.0", "cuda": "11.8", "driver": "525.60.13"}, "torch-2.0-cu118", "ok"),
    ({"torch": "2.0", "cuda": "11.8", "driver": "520.61.05"}, None, {POLICY}),
    ({"torch": "2.3", "cuda": "12.1", "driver": "535.161.08"}, "torch-2.3-cu121", "ok"),
    ({"torch": "2.3", "cuda": "12.1", "driver": "530.30.02"}, None, {POLICY}),
    # torch's default build on the driver that most hosts have.
    ({"torch": "2.15", "driver": "580.95.05"}, "torch-2.15-cu132", "ok_minor"),
    ({"torch": "2.15", "driver": "595.45.04"}, "torch-2.15-cu132", "ok"),
    ({"torch": "2.11", "cuda": "13.0", "driver": "535.309.01", "gpu": "L4"}, "torch-2.11-cu130",
     "ok_compat"),
    ({"torch": "2.11", "cuda": "13.0", "driver": "535.309.01", "gpu": "RTX 4090"}, None,
     {("cuda", "driver", "gpu")}),
    ({"torch": "2.11", "driver": "535.309.01"}, "torch-2.11-cu129", "ok_minor"),
    # Capabilities: 8.9 and 10.3 run older code of their major; 9.0 runs none of 1.13.
    ({"torch": "2.3", "gpu": "L40S"}, "torch-2.3-cu121", "None"),
    ({"torch": "2.8", "gpu": "B300", "driver": "580.65.06"}, "torch-2.8-cu128", "ok"),
    ({"torch": "1.13", "gpu": "H100"}, None, {("torch", "gpu")}),
    ({"torch": "2.0", "gpu": "H100"}, "torch-2.0-cu118", "None"),
    ({"torch": "2.7", "gpu": "B200"}, "torch-2.7-cu128", "None"),
    ({"torch": "2.6", "gpu": "B200"}, None, {("torch", "gpu")}),
    ({"torch": "2.14", "gpu": "V100"}, "torch-2.14-cu126", "None"),
    ({"torch": "2.15", "gpu": "V100"}, None, {("torch", "gpu")}),
    ({"gpu": "V100", "driver": "620"}, None, {("driver", "gpu")}),
    ({"gpu": "B200", "driver": "535"}, None, {("driver", "gpu")}),
    ({"gpu": "V100,B200"}, "torch-2.10-cu128", "None"),
    ({"gpu": "P100,B200"}, None, {("gpu",)}),
    # Kernel modules and fabric manager.
    ({"gpu": "B200", "modules": "proprietary"}, None, {("gpu", "modules")}),
    ({"driver": "620", "modules": "proprietary"}, None, {("driver", "modules")}),
    ({"driver": "580.65.06", "fabric_manager": "580.82.07"}, None, {("driver", "fabric_manager")}),
    # Python and glibc.
    ({"torch": "1.13", "python": "3.12"}, None, {("torch", "python")}),
    ({"torch": "2.3", "cuda": "12.8"}, None, {("torch", "cuda")}),
    ({"torch": "2.7", "os": "debian12", "glibc": "2.27"}, None, {("torch", "os")}),
    ({"torch": "2.6", "os": "debian12", "glibc": "2.27"}, "torch-2.6-cu124", "None"),
    ({"cuda": "13.4"}, None, {("cuda",)}),
    ({"torch": "2.3", "cuda": "cpu"}, "torch-2.3-cpu", "None"),
]  # fmt: skip


@pytest.mark.parametrize(("question", "row", "more"), PICKED)
def test_picked_questions_have_the_known_answer(question, row, more):
    """
    The answer's name and verdict, or the conflicting pins; written by hand from the facts.
    """
    resolution = ask(question)
    if row is None:
        assert resolution.fits == ()
        assert {conflict.pins for conflict in resolution.conflicts} == more
        assert resolution.nearest
    else:
        best = resolution.fits[0]
        assert (best.name, str(best.verdict)) == (row, more)


@pytest.mark.parametrize(
    ("system", "torch", "python"),
    [
        ("debian12", "2.3", "3.11"),
        ("debian13", "2.3", "3.11"),  # has 3.13: a standalone Python
        ("ubuntu2204", "1.13", "3.10"),
        ("ubuntu2404", "2.3", "3.11"),  # has 3.12, with wheels but without Triton
        ("ubuntu2404", "2.4", "3.12"),
        ("debian13", "2.5", "3.12"),  # has 3.13, without Triton
        ("ubuntu2604", "2.9", "3.14"),
        ("ubuntu2204", "2.15", "3.15"),
    ],
)
def test_the_python_is_that_of_the_system_where_all_of_torch_works_with_it(system, torch, python):
    fit = ask({"os": system, "torch": torch}).fits[0]
    assert fit.python == python
    assert fit.is_system_python is (brute_force.facts()["systems"][system]["python"] == python)


def test_what_an_operator_should_know_is_said():
    """
    End of life of driver and Python, torch.compile, cuda-compat, NVSwitch, old data.
    """
    resolution = ask({"torch": "2.0", "driver": "535", "gpu": "H100", "python": "3.8"})
    assert "driver branch 535: end of life was 2026-06" in resolution.warnings
    assert any("fabric manager 535.309.01, exactly" in text for text in resolution.warnings)
    assert "Python 3.8 has no security fixes since 2024-10" in resolution.fits[0].notes
    assert any(
        "torch.compile" in note for note in ask({"python": "3.12", "torch": "2.3"}).fits[0].notes
    )
    compat = ask({"torch": "2.11", "cuda": "13.0", "driver": "535", "gpu": "L4"}).fits[0]
    assert any("cuda-compat-13-0" in note for note in compat.notes)
    catalog = load_catalog()
    late = resolve(
        catalog,
        load_policy(),
        parse_wish(catalog, torch="", cuda="", python=""),
        parse_facts(catalog, driver="", gpu="", os=""),
        today=date(2027, 3, 1),
    )
    assert any("renew it with python -m deploy.versions.generate" in w for w in late.warnings)
    assert ask({"driver": "580"}).warnings == ()


def test_code_as_ptx_alone_needs_the_driver_of_its_toolkit():
    """
    No build needs it today: a catalog with one that does.
    """
    catalog = load_catalog()
    release = next(row for row in catalog.torch if row.minor == "2.7")
    builds = [
        build.model_copy(update={"capabilities": ("7.5",), "ptx": "7.5"})
        if build.build == "cu128"
        else build
        for build in release.builds
    ]
    changed = release.model_copy(update={"builds": tuple(builds)})
    catalog = catalog.model_copy(update={"torch": (changed,)})
    question = {"cuda": "12.8", "gpu": "H100"}
    assert told(ask(question | {"driver": "570.86.10"}, catalog)) == {("2.7", "cu128"): "ok"}
    assert told(ask(question | {"driver": "550.54.14"}, catalog)) == {}
    assert told(ask({"cuda": "12.8", "gpu": "T4", "driver": "550.54.14"}, catalog)) == {
        ("2.7", "cu128"): "ok_minor"
    }


ALL = [question for question, _, _ in PICKED if question.get("cuda") != "13.4"] + QUESTIONS


@cache
def right_answers():
    return [wanted(question) for question in ALL]


def is_caught(catalog=None):
    return any(
        told(ask(question, catalog)) != right
        for question, right in zip(ALL, right_answers(), strict=True)
    )


def changed(key, index, **update):
    """
    Return the catalog with another value in one row.
    """
    catalog = load_catalog()
    rows = list(getattr(catalog, key))
    place = next(i for i, row in enumerate(rows) if index in row.model_dump().values())
    rows[place] = rows[place].model_copy(update=update)
    return catalog.model_copy(update={key: tuple(rows)})


def without_capability(minor, build, capability):
    release = next(row for row in load_catalog().torch if row.minor == minor)
    builds = [
        own.model_copy(
            update={"capabilities": tuple(c for c in own.capabilities if c != capability)}
        )
        if own.build == build
        else own
        for own in release.builds
    ]
    return changed("torch", minor, builds=tuple(builds))


@pytest.mark.parametrize(
    "catalog",
    [
        lambda: changed("cuda", "12.8", native="570.124.06"),
        lambda: changed("cuda", "12.6", native="560.35.06"),
        lambda: changed("cuda", "13.0", floor="570.00.00"),
        lambda: changed("cuda", "11.8", floor="450.00.00"),
        lambda: changed("cuda", "12.6", compat_branches=()),
        lambda: changed("cuda", "13.0", compat_branches=(535, 550, 565, 575)),
        lambda: changed("torch", "2.7", glibc="2.17"),
        lambda: changed("torch", "2.6", pythons=("3.9", "3.10", "3.11", "3.12")),
        lambda: without_capability("2.14", "cu126", "7.0"),
        lambda: without_capability("2.0", "cu118", "9.0"),
        lambda: changed("generations", "Volta", last_branch=None),
        lambda: changed("generations", "Blackwell", first_branch=535),
        lambda: changed("generations", "Blackwell", modules=("open", "proprietary")),
        lambda: changed("generations", "Turing", last_branch=580),
        lambda: changed("gpus", "RTX-4090", is_data_center=True),
        lambda: changed("gpus", "L4", capability="7.0"),
        lambda: changed("branches", 620, modules=("open", "proprietary")),
        lambda: changed("branches", 570, newest="570.00"),
    ],
)  # fmt: skip
def test_a_wrong_number_in_the_data_is_noticed(catalog):
    """
    Negative control: with one wrong value some answer is wrong.
    """
    assert is_caught(catalog())


def test_the_right_data_is_not_complained_about():
    """
    Negative control of the negative control.
    """
    assert not is_caught()


MUTANTS = [
    ("rules", "_has_machine_code", lambda build, gpu: gpu in (build.capabilities or ())),
    ("rules", "_has_machine_code", lambda build, capability: True),
    ("rules", "runs", lambda build, gpu: any(own <= gpu for own in build.capabilities or ())),
    ("rules", "numbers", lambda version: tuple(map(int, version.split(".")))[:2]),
    ("Rules", "_policy_min", lambda self, row: None),
    ("Rules", "_module_obstacles", lambda self: iter(())),
    ("Rules", "_fabric_obstacles", lambda self: iter(())),
    ("Rules", "_last_branch", lambda self, gpu: None),
    ("Rules", "_first_branch", lambda self, gpu: 0),
    ("Rules", "verdict", lambda self, build, driver: DriverVerdict.OK),
]  # fmt: skip


@pytest.mark.parametrize(("place", "name", "mutant"), MUTANTS)
def test_a_wrong_rule_is_noticed(monkeypatch, place, name, mutant):
    """
    Negative control: with one rule missing or wrong some answer is wrong.
    """
    monkeypatch.setattr(rules.Rules if place == "Rules" else rules, name, mutant)
    assert is_caught()


def test_a_search_that_misses_a_conflict_is_noticed(monkeypatch):
    """
    Negative control: a search that stops at the first conflict differs from the brute force.
    """
    search = resolver._smallest
    monkeypatch.setattr(resolver, "_smallest", lambda pins, test: list(search(pins, test))[:1])
    assert any(
        {frozenset(c.pins) for c in ask(question).conflicts} != brute_force.conflicts(question)
        for question in QUESTIONS
        if not wanted(question)
    )
