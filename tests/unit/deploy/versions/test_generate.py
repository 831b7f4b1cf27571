import json
import re
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pytest

from deploy.errors import InventoryError
from deploy.versions import generate
from deploy.versions.catalog import FILE, load_catalog
from deploy.versions.matrix import load_matrix
from deploy.versions.policy import load_policy
from tests.unit.deploy.versions import brute_force

FOLDER = generate.FOLDER
RENEW = f"renew with: {generate.COMMAND}"
OLDEST_DAYS = 120  # of the data, beside the newest commit


def is_current(folder):
    text = generate.catalog_text(generate.read_sources(folder))
    return (folder / FILE).read_text(encoding="utf-8") == text


@pytest.fixture
def copy(tmp_path):
    """
    A copy of the data that a test may change.
    """
    shutil.copytree(FOLDER / "sources", tmp_path / "sources")
    shutil.copy(FOLDER / FILE, tmp_path)
    return tmp_path


def test_the_generated_file_is_that_of_its_sources():
    """
    A file that is stale or was changed by hand fails here.
    """
    assert is_current(FOLDER), RENEW


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (FILE, '"floor": "525.60.13"', '"floor": "525.60.12"'),
        (FILE, '"date": "2026-11-24"', '"date": "2026-11-25"'),
        ("sources/nvidia.yml", 'floor: "525.60.13"', 'floor: "525.60.12"'),
        ("sources/torch.yml", '"10.0", "12.0"]', '"10.0"]'),
        ("sources/distributions.yml", 'glibc: "2.36"', 'glibc: "2.35"'),
    ],
)
def test_a_change_by_hand_is_noticed(copy, file, old, new):
    """
    Negative control, of the generated file and of each source.
    """
    assert is_current(copy)
    text = (copy / file).read_text(encoding="utf-8")
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert not is_current(copy)


def test_what_the_package_index_said_is_not_edited_by_hand(copy):
    path = copy / "sources" / generate.PACKAGES
    path.write_text(path.read_text().replace('"2.15.0"', '"2.15.1"'))
    with pytest.raises(InventoryError) as caught:
        generate.read_sources(copy)
    assert caught.value.fix == generate.COMMAND


def sources(**changes):
    found = dict(generate.read_sources(FOLDER))
    return json.loads(json.dumps(found | changes))


def test_a_new_torch_without_its_builds_is_refused():
    """
    The index has a minor that torch.yml lacks: the error names it and the file.
    """
    found = sources()
    found["packages"]["torch"].append({**found["packages"]["torch"][-1], "minor": "2.16"})
    with pytest.raises(InventoryError) as caught:
        generate.catalog_text(found)
    assert "torch 2.16" in caught.value.what
    assert "torch.yml" in caught.value.fix
    assert generate.COMMAND in caught.value.fix


def test_a_default_build_that_is_not_listed_is_refused():
    found = sources()
    found["packages"]["torch"][-1]["build"] = "cu140"
    with pytest.raises(InventoryError, match="default build cu140"):
        generate.catalog_text(found)


def test_a_build_without_drivers_is_refused():
    found = sources()
    found["nvidia"]["cuda"] = [row for row in found["nvidia"]["cuda"] if row["cuda"] != "12.6"]
    with pytest.raises(InventoryError, match=r"CUDA 12\.6"):
        generate.catalog_text(found)


def test_the_program_compares_without_writing(capsys, monkeypatch, copy):
    """
    --check exits 1 where a file differs, names the command and leaves the file.
    """
    monkeypatch.setattr(generate, "FOLDER", copy)
    assert generate.main(["--offline", "--check"]) == 0
    (copy / FILE).write_text("{}")
    assert generate.main(["--offline", "--check"]) == 1
    assert (copy / FILE).read_text() == "{}"
    out, err = capsys.readouterr()
    assert (out, err) == (f"differs: {FILE}\n", f"{RENEW}\n")
    assert generate.main(["--offline"]) == 0
    assert is_current(copy)


def test_a_second_run_changes_nothing(monkeypatch, copy):
    """
    Also on another day: the date is that on which the index last said something new.
    """
    monkeypatch.setattr(generate, "FOLDER", copy)
    path = copy / "sources" / generate.PACKAGES
    known = json.loads(path.read_text())
    assert generate.packages_text(known, today="2030-01-01") == path.read_text()
    known["torch"].pop()
    assert '"date": "2030-01-01"' in generate.packages_text(known, today="2030-01-01")


def test_the_data_is_not_much_older_than_the_newest_commit():
    """
    An old checkout stays green; one that goes on with old data does not.
    """
    done = subprocess.run(
        ["git", "log", "-1", "--format=%cs"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or not done.stdout.strip():
        pytest.skip("no git history here")
    newest = date.fromisoformat(done.stdout.strip())
    age = (newest - date.fromisoformat(load_catalog().date)).days
    assert age <= OLDEST_DAYS, RENEW


def test_the_data_names_no_place_of_its_making():
    """
    No address of an index or mirror, and no path of a machine.
    """
    for path in (FOLDER / FILE, *(FOLDER / "sources").iterdir(), *FOLDER.glob("*.yml")):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"\w+://|(?:^|[\s\"'])/(?:home|opt|root|tmp|work|usr|etc)/", text) == []


def test_every_torch_is_as_the_facts_have_it():
    """
    Wheels, official Pythons, Triton, glibc, default build and the code of each build.
    """
    facts = brute_force.facts()["torch"]
    assert [release.minor for release in load_catalog().torch] == list(facts)
    for release in load_catalog().torch:
        own = facts[release.minor]
        assert list(release.pythons) == own["wheels"]
        assert release.default == own["default"]
        assert release.glibc == own["glibc"]
        for python in release.pythons:
            is_official = brute_force.is_official(release.minor, python)
            assert (python in release.official) == is_official, (release.minor, python)
            has_triton = brute_force.has_triton(release.minor, python)
            assert not release.triton or (python in release.triton) == has_triton
        builds = {build.build: build for build in release.builds}
        assert builds.pop("cpu").cuda is None
        assert builds.keys() == own["builds"].keys()
        for name, build in builds.items():
            archs = own["builds"][name]["archs"]
            assert build.capabilities == (None if archs is None else tuple(archs))
            assert build.ptx == own["builds"][name]["ptx"]
            assert build.index == ("pypi" if name == own["default"] else f"pytorch/{name}")


def test_every_row_of_a_fleet_file_is_a_row_of_the_data():
    """
    CUDA, Python and capabilities of matrix.yml; its drivers are those of the policy.
    """
    policy = {(rule.torch, rule.build): rule.driver_min for rule in load_policy()}
    torch = {release.minor: release for release in load_catalog().torch}
    for row in load_matrix().rows:
        minor = ".".join(row.torch.split(".")[:2])
        release = torch[minor]
        build = next(build for build in release.builds if build.build == row.build)
        assert (release.version, build.cuda) == (row.torch, row.cuda)
        assert row.python in release.official
        assert (row.wheel is not None) == (build.index == "pypi" and row.lock is not None)
        native = load_catalog().cuda_version(row.cuda).native if row.cuda else None
        assert row.driver_min == policy.pop((minor, row.build), native)
    assert policy == {}, "a policy without a row"


def test_the_three_rows_of_policy_are_there():
    rules = {(rule.torch, rule.build): rule.driver_min for rule in load_policy()}
    assert rules == {("1.13", "cu117"): "515", ("2.0", "cu118"): "525", ("2.3", "cu121"): "535"}
    assert Path(FOLDER / "policy.yml").stat().st_size < 2000
