from deploy.lab import base
from deploy.lab.base import DebootstrapStages, recipe_digest


def test_another_recipe_is_another_tree(monkeypatch):
    """
    The digest depends on the architecture and on each package, and on nothing else.
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


def test_each_stage_of_a_build_is_reported_once():
    """
    debootstrap prints a line for every package.
    """
    reported = []
    stages = DebootstrapStages(reported.append)

    for line in [
        "I: Retrieving InRelease ",
        "I: Retrieving apt 2.6.1",
        "I: Extracting apt...",
        "W: Retrieving nothing",
        "I: Configuring apt...",
    ]:
        stages.on_line(line)

    assert reported == [
        "base tree: retrieving packages",
        "base tree: extracting packages",
        "base tree: configuring packages",
    ]
