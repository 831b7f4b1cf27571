"""
Valid fleet files, with the changes that a test needs.
"""

import copy

import yaml

from deploy.inventory.load import load_fleet

MINIMAL = {
    "row": "torch-2.3-cu121",
    "signing": {
        "identity": "ops@example.com",
        "key": "keys/sign",
        "allowed_signers": "keys/allowed",
    },
    "hosts": {"n1": {"address": "192.0.2.1"}, "n2": {"address": "192.0.2.2"}},
}


def fleet_data(changes=None):
    """
    Return a valid file's data with *changes*: {"release.canary.min_requests": 5}.
    """
    data = copy.deepcopy(MINIMAL)
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place = data
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return data


def yaml_text(data):
    """
    Return *data* as YAML, its keys in their order.
    """
    try:
        return yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False)
    except UnicodeEncodeError:  # half of a surrogate pair, which libyaml cannot write
        return yaml.safe_dump(data, sort_keys=False)


def write_fleet(root, changes=None, *, text=None, name="test"):
    folder = root / "inventories"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yml"
    text = yaml_text(fleet_data(changes)) if text is None else text
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def make_fleet(root, changes=None, *, text=None, limit=None, known_rows=None):
    """
    Load the fleet file that `write_fleet` writes.
    """
    write_fleet(root, changes, text=text)
    return load_fleet("test", root=root, limit=limit, known_rows=known_rows)
