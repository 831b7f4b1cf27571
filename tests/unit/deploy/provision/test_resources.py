import json
from dataclasses import replace

import pytest

from deploy.host import layout
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


def change(resource, **found):
    path = path_like(resource, **found)
    facts = replace(GOOD, paths=GOOD.paths | {resource.path: path})
    return resource.difference(facts)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"mode": "0600"}, "mode 0600 → 0644"),
        ({"owner": "slipway"}, "owner slipway:root → root:root"),
        ({"type": "link"}, "link → file"),
        ({"sha256": "0" * 64, "text": ""}, "new content"),
        ({"sha256": "0" * 64, "mode": "0666"}, "new content, mode 0666 → 0644"),
    ],
)
def test_a_change_says_what_was_found_and_what_will_be(found, words):
    """
    Owner, mode, kind and content are each compared, and named with both values.
    """
    assert change(UNIT, **found).change == words


def test_the_diff_is_that_of_the_text():
    """
    A check shows which lines change.
    """
    old = UNIT.content.decode().replace("Type=notify", "Type=exec")
    diff = change(UNIT, sha256="0" * 64, text=old).diff
    changed = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] != "+++"]
    assert "-Type=exec" in changed
    assert "+Type=notify" in changed


def test_a_secret_is_in_no_diff_and_no_repr():
    """
    Neither a diff, a change nor the text of an object shows what a secret file holds.
    """
    secret = find(RESOURCES, layout.ENVIRONMENT)
    assert TOKEN.encode() in secret.content  # negative control: it is in there
    found = change(secret, sha256="0" * 64, text="SLIPWAY_API_TOKENS=older")
    for difference in (found, secret.difference(bare(RESOURCES))):
        assert difference.diff is None
        assert TOKEN not in str(difference)
    assert TOKEN not in repr(secret)
    assert TOKEN not in repr(RESOURCES)
    assert "older" not in str(found)


def test_a_plain_file_that_is_new_shows_its_text():
    """
    Negative control of the above: what holds no secret is shown.
    """
    assert "+Type=notify" in UNIT.difference(bare(RESOURCES)).diff


def test_a_site_survives_the_way_to_the_worker():
    """
    What the worker reads is what was planned, bytes included.
    """
    there = ResourceSet.model_validate_json(RESOURCES.model_dump_json())
    assert there == RESOURCES
    binary = File(path="/x", content=bytes(range(256)))
    assert File.model_validate(json.loads(binary.model_dump_json())) == binary


def test_a_directory_of_the_same_name_is_not_the_file():
    """
    What is in the way is named.
    """
    directory = find(RESOURCES, layout.INCOMING)
    assert change(directory, type="file").change == "file → directory"
