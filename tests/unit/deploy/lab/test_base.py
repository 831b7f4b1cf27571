from deploy.lab import base
from deploy.lab.base import Stages, recipe_digest


def test_another_recipe_is_another_tree(monkeypatch):
    """
    By architecture and by package; the same recipe twice is one tree.
    """
    first = recipe_digest("amd64")

    assert first == recipe_digest("amd64")
    assert first != recipe_digest("arm64")
    monkeypatch.setattr(base, "PACKAGES", (*base.PACKAGES, "vim"))
    assert first != recipe_digest("amd64")


def test_the_base_has_nothing_that_provisioning_brings():
    """
    A lab host is as bare as a rented one.
    """
    assert not {"haproxy", "python3-venv", "python3-pip", "uv"} & set(base.PACKAGES)


def test_each_stage_of_a_build_is_told_once():
    """
    debootstrap says a line for every package.
    """
    told = []
    stages = Stages(told.append)

    for line in [
        "I: Retrieving InRelease ",
        "I: Retrieving apt 2.6.1",
        "I: Extracting apt...",
        "W: Retrieving nothing",
        "I: Configuring apt...",
    ]:
        stages.hear(line)

    assert told == [
        "base tree: retrieving packages",
        "base tree: extracting packages",
        "base tree: configuring packages",
    ]
