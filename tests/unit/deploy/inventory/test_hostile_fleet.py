"""
A hostile fleet file: hostile texts in every key are refused by name, or inert.
"""

import copy
import subprocess
from pathlib import Path

import pytest

from deploy import templating
from deploy.errors import InventoryError, hide_passwords
from deploy.inventory.document import format_path
from deploy.inventory.load import load_fleet
from deploy.inventory.schema import AptSource, Fleet, Mirrors
from deploy.quoting import Quoted
from tests.unit.deploy.inventory import rendered
from tests.unit.deploy.inventory.builders import make_fleet, write_fleet, yaml_text
from tests.unit.deploy.inventory.payloads import PAYLOADS
from tests.unit.deploy.inventory.schema_walk import (
    EXAMPLE,
    concrete,
    leaves,
    mappings,
    put,
    with_value,
)
from tests.unit.deploy.inventory.traced import effects, traced

ROWS = {"torch-2.13-cu130": True}
LEAVES = [concrete(path) for path in leaves()]
MAPPINGS = [concrete(path) for path in mappings()]
# What a fleet's file and its rendering may read.
READABLE = (".yml", ".j2", ".py", ".pyc", ".lock", "METADATA", "RECORD", "/usr/bin", "PKG-INFO")


def attempt(root):
    try:
        return load_fleet("test", root=root, known_rows=ROWS)
    except InventoryError as error:
        return error


def refusal_or_fleet(root, data):
    """
    Return the error of loading *data*, or the fleet; every effect on the world is a failure.
    """
    write_fleet(root, text=yaml_text(data))
    with traced() as events:
        outcome = attempt(root)
    assert effects(events) == []
    assert {path for _, path, _ in events} <= {str(root / "inventories/test.yml")}
    return outcome


def blames(error, path):
    """
    Return True if *error* names the file and the key *path*, or the mapping that has it.
    """
    text = str(error)
    # A name that looks like an address with a password is shown without it.
    places = [hide_passwords(format_path(path[:length])) for length in range(len(path), 0, -1)]
    named = any(f" {place}: " in f" {text}" for place in places[:2])
    return named and "inventories/test.yml" in error.what


def minimal(path):
    """
    Return the smallest valid file that has the section of *path*.
    """
    data = {key: EXAMPLE[key] for key in ("row", "signing", "hosts")}
    sections = {path[0]} | ({"secrets"} if path[0] in ("service", "release", "state") else set())
    return data | {key: copy.deepcopy(EXAMPLE[key]) for key in sections}


def assert_inert(fleet):
    """
    Each target reads in the files and arguments of *fleet* exactly its values.
    """
    with traced() as events:
        texts = rendered.files(fleet)
        assert rendered.misread(fleet, texts) == []
    assert effects(events) == []
    opened = [path for _, path, _ in events if not path.endswith(READABLE)]
    assert opened == []


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    example = load_fleet("example", root=Path(__file__).parents[4])
    rendered.misread(example, rendered.files(example))  # imports modules and compiles templates
    return folder


def test_every_key_is_attacked_with_two_hundred_texts():
    """
    The keys come from the schema, lists and names included.
    """
    paths = {format_path(path) for path in LEAVES}
    assert {"ssh.user", "hosts.gpu-01.address", "mirrors.apt[0].uris[0]", "service.vllm_args[0]",
            "signing.key", "secrets.partner_token.file", "release.waves[0]"} <= paths  # fmt: skip
    assert {path[0] for path in MAPPINGS} == {"hosts", "groups", "secrets"}
    assert len(LEAVES) > 60
    assert len(PAYLOADS) >= 200
    assert isinstance(load_fleet("example", root=Path(__file__).parents[4]), Fleet)


ACCEPTED = {}


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_a_hostile_value_is_refused_by_name_or_inert(root, number):
    """
    One payload in all keys at once; the keys that are not blamed then one by one.
    """
    payload = PAYLOADS[number]
    data = copy.deepcopy(EXAMPLE)
    for path in LEAVES:
        put(data, path, payload)
    error = refusal_or_fleet(root, data)
    assert isinstance(error, InventoryError)
    for path in LEAVES:
        if blames(error, path):
            continue
        outcome = refusal_or_fleet(root, with_value(minimal(path), path, payload))
        if isinstance(outcome, InventoryError):
            assert blames(outcome, path), f"{format_path(path)}: {outcome}"
        else:
            ACCEPTED.setdefault(path, []).append(payload)
            assert_inert(outcome)


@pytest.mark.parametrize("path", MAPPINGS, ids=format_path)
def test_a_hostile_name_is_refused_or_inert(root, path):
    """
    Of hosts, groups, secrets and variables.
    """
    for payload in PAYLOADS:
        data = minimal(path)
        place = data
        for part in path:
            place = place[part]
        value = copy.deepcopy(next(iter(place.values())))
        if path == ("hosts",):
            value = {"address": "192.0.2.77"}
        outcome = refusal_or_fleet(root, with_value(data, (*path, payload), value))
        if isinstance(outcome, InventoryError):
            name = payload.replace("\udcff", "?")
            assert blames(outcome, (*path, name)) or blames(outcome, path), outcome
        else:
            assert_inert(outcome)


@pytest.mark.parametrize("path", LEAVES, ids=format_path)
def test_one_hostile_value_is_one_error(root, path):
    """
    It names the file and the key, with the line; the value is not printed as it is.
    """
    payload = "x\n  ProxyCommand touch /tmp/x\x1b[2J"
    error = refusal_or_fleet(root, with_value(minimal(path), path, payload))
    assert isinstance(error, InventoryError)
    assert blames(error, path)
    assert "\x1b" not in str(error)
    assert "\n  ProxyCommand" not in str(error)


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_a_hostile_text_in_the_file_itself_is_refused_or_inert(root, number):
    """
    The payload unquoted, where YAML reads it: as a value, a key and a whole file.
    """
    payload = PAYLOADS[number]
    text = yaml_text(minimal(("ssh",)))
    for hostile in (
        text.replace("user: root", f"user: {payload}"),
        text.replace("user: root", f"user: '{payload}'"),
        text.replace("user: root", f"{payload}: root"),
        text + payload,
        payload,
    ):
        try:
            written = hostile.encode("utf-8", "surrogatepass")
        except UnicodeEncodeError:
            continue
        write_fleet(root, text=written)
        with traced() as events:
            outcome = attempt(root)
        assert effects(events) == []
        if isinstance(outcome, InventoryError):
            assert "inventories/test.yml" in outcome.what
        else:
            assert_inert(outcome)


def hostile_fleet(tmp_path):
    """
    Return a fleet that no file can say: its types were switched off.
    """
    fleet = make_fleet(tmp_path)
    source = AptSource.model_construct(
        uris=("http://x",), suites=("a\nTrusted: yes",), components=("main",), signed_by=None
    )
    proxy = 'http://x";\nDPkg::Pre-Invoke {"touch /tmp/x'
    mirrors = Mirrors.model_construct(apt=(source,), apt_proxy=proxy)
    return Fleet.model_construct(**dict(fleet) | {"mirrors": mirrors})


def test_without_the_types_the_quoting_refuses(tmp_path):
    """
    Negative control of the types: behind them is a second guard.
    """
    with pytest.raises(ValueError, match=r"apt\.conf"):
        rendered.files(hostile_fleet(tmp_path))


def test_without_types_and_quoting_the_targets_would_misread(tmp_path, monkeypatch):
    """
    Negative control of the comparison: with both guards off it finds the further lines.
    """
    raw = dict.fromkeys(templating.QUOTERS, lambda value: Quoted(f'"{value}"'))
    plain = raw | {"deb822": lambda value: Quoted(value)}
    monkeypatch.setattr(templating, "QUOTERS", plain | {"yaml": templating.QUOTERS["yaml"]})
    templating._environment.cache_clear()
    fleet = hostile_fleet(tmp_path)
    try:
        texts = rendered.files(fleet)
    finally:
        templating._environment.cache_clear()
    assert "\nTrusted: yes" in texts["/etc/apt/sources.list.d/slipway.sources"]
    with pytest.raises(AttributeError):  # a line that is no setting
        rendered.misread(fleet, texts)


def test_an_effect_would_be_noticed(tmp_path):
    """
    Negative control of the trace: a process, a file and a name lookup.
    """
    with traced() as events:
        subprocess.run(["true"], check=True)
        (tmp_path / "x").write_text("")
    assert {event for event, _, _ in effects(events)} >= {"subprocess.Popen", "open"}
