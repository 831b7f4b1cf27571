"""
Answers questions to the version matrix by trying everything, from facts.yml alone.

It shares no code and no data with deploy/versions: neither reads what the other does.
"""

import itertools
import re
from functools import cache
from pathlib import Path

import yaml

PINS = ("torch", "cuda", "python", "driver", "gpu", "os", "modules", "fabric_manager")


@cache
def facts():
    return yaml.safe_load(Path(__file__).with_name("facts.yml").read_text(encoding="utf-8"))


def version(text):
    return [int(part) for part in str(text).split(".")]


@cache
def first_driver(cuda):
    """
    The oldest driver that came with a toolkit of this CUDA minor.
    """
    own = [d for t, d in facts()["toolkits"].items() if t.startswith(f"{cuda}.")]
    return min(own, key=version)


def generation(capability):
    for row in facts()["generations"]:
        if version(capability) <= version(row["until"]):
            return row
    raise AssertionError(capability)


def verdict(cuda, driver, is_consumer):
    if version(driver) >= version(first_driver(cuda)):
        return "ok"
    if version(driver) >= version(facts()["majors"][int(cuda.split(".")[0])]):
        return "ok_minor"
    if int(driver.split(".")[0]) in facts()["compat"][cuda] and not is_consumer:
        return "ok_compat"
    return "fail"


def has_code(build, capability):
    """
    Whether machine code of the build runs, and whether its PTX would.
    """
    major, minor = version(capability)
    cubin = any(version(a)[0] == major and version(a)[1] <= minor for a in build["archs"] or [])
    ptx = build["ptx"] is not None and version(build["ptx"]) <= [major, minor]
    return cubin, ptx


def full_driver(text):
    text = text.lstrip("R")
    return text if "." in text else facts()["newest_of_branch"][int(text)]


def cuda_of(build):
    return "cpu" if build == "cpu" else f"{build[2:4]}.{build[4:]}"


def runs(minor, name, python, question):
    """
    Return the verdict for one build and Python, "none" without a driver, or "" if it does not do.
    """
    torch = facts()["torch"][minor]
    cuda = cuda_of(name)
    if question.get("torch", minor) != minor or question.get("python", python) != python:
        return ""
    if question.get("cuda", cuda) != cuda:
        return ""
    glibc = question.get("glibc") or (
        "os" in question and facts()["systems"][question["os"]]["glibc"]
    )
    if "os" in question and glibc and version(glibc) < version(torch["glibc"]):
        return ""
    if cuda == "cpu":
        return "none"
    build = torch["builds"][name]
    gpus = question["gpu"].split(",") if "gpu" in question else []
    capabilities = [facts()["capability"].get(gpu, gpu) for gpu in gpus]
    driver = full_driver(question["driver"]) if "driver" in question else None
    modules = question.get("modules")
    if any(not any(has_code(build, capability)) for capability in capabilities):
        return ""
    if modules and any(modules not in generation(c)["modules"] for c in capabilities):
        return ""
    if driver is None:
        return "none"
    branch = int(driver.split(".")[0])
    if modules == "proprietary" and branch >= facts()["open_only_from"]:
        return ""
    if modules == "open" and branch < facts()["open_from"]:
        return ""
    if question.get("fabric_manager", driver) != driver:
        return ""
    for capability in capabilities:
        row = generation(capability)
        if branch < row["first"] or (row["last"] and branch > row["last"]):
            return ""
    for row in facts()["policy"]:
        is_it = (row["torch"], row["build"]) == (minor, name)
        if is_it and version(driver) < version(row["driver"]):
            return ""
    found = verdict(cuda, driver, any(gpu in facts()["consumer"] for gpu in gpus))
    if found == "ok_minor" and not all(has_code(build, c)[0] for c in capabilities):
        return ""
    return "" if found == "fail" else found


def rows(question, *, with_cpu):
    """
    Yield (minor, build, python, verdict) of every row that does.
    """
    for minor, torch in facts()["torch"].items():
        for name in [*torch["builds"], *(["cpu"] if with_cpu else [])]:
            for python in torch["wheels"]:
                if found := runs(minor, name, python, question):
                    yield minor, name, python, found


def answer(question):
    return set(rows(question, with_cpu=question.get("cuda") == "cpu"))


def can(question, pins):
    """
    Whether a row does for *question* with *pins* of it alone.
    """
    kept = {key: value for key, value in question.items() if key in pins or key == "glibc"}
    return any(True for _ in rows(kept, with_cpu=question.get("cuda") == "cpu"))


def subsets(question):
    own = [pin for pin in PINS if pin in question]
    for size in range(1, len(own) + 1):
        yield from map(frozenset, itertools.combinations(own, size))


def conflicts(question):
    """
    Every set of pins that no row meets, of which each smaller set is met.
    """
    bad = [some for some in subsets(question) if not can(question, some)]
    return {some for some in bad if not any(other < some for other in bad)}


def changes(question):
    """
    Every smallest set of pins without which a row does; those of hardware only if need be.
    """
    own = frozenset(pin for pin in PINS if pin in question)
    good = [some for some in subsets(question) if can(question, own - some)]
    least = {some for some in good if not any(other < some for other in good)}
    return {some for some in least if not some & {"gpu", "os"}} or least


def is_official(minor, python):
    bounds = re.findall(r"(>=|<=)(3\.[0-9]+)", facts()["torch"][minor]["official"])
    return all(
        version(python) >= version(bound) if sign == ">=" else version(python) <= version(bound)
        for sign, bound in bounds
    )


def has_triton(minor, python):
    """
    Whether torch.compile has its Triton there; 1.13 has no torch.compile, so that nothing lacks.
    """
    text = facts()["torch"][minor]["triton"] or ""
    below = re.search(r"python<(3\.[0-9]+)", text)
    return below is None or version(python) < version(below[1])
