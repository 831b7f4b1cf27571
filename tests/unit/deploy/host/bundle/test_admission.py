"""
Which signed bundles a host takes: of its fleet, by an allowed signer, and no older one.
"""

import dataclasses
import json

import pytest

from deploy.bundle.sign import sign_bundle
from deploy.host.bundle import admission, staging, verify
from deploy.host.bundle.manifest import MANIFEST, SIGNATURE
from deploy.host.files import write_atomic
from deploy.host.protocol import GoodRecord, HostError, SlotStart, StageCommit, StageMissing
from deploy.host.system import System
from tests.unit.deploy.bundle.builders import IDENTITY, NOW_S, make_key
from tests.unit.deploy.host.staged import placed, refusal, send


def staged(host, workshop, keys, version, now_s):
    bundle = workshop.signed(keys[0], version, now_s=now_s)
    send(host, bundle, workshop)
    return bundle


def good(host, bundle, slot="blue"):
    host.release = f"r-{bundle.version}"
    host.call(GoodRecord(bundle.digest, bundle.version, slot))


# -- the fleet


def test_a_bundle_of_another_fleet_is_refused(provisioned, workshop, keys):
    """
    Signed by the same person; neither asked for nor placed.
    """
    bundle = workshop.signed(keys[0], fleet="staging")

    error = refusal(provisioned, bundle, workshop)

    assert error.kind == "PreconditionError"
    assert "built for staging, this host belongs to prod" in error.why
    assert not provisioned.layout.incoming.exists()
    assert provisioned.refusal(StageCommit(bundle.digest)).kind == "BundleTruncated"


def test_the_commit_checks_the_fleet_too(provisioned, workshop, keys, monkeypatch):
    """
    A caller may leave the question out; negative control: without the check it is placed.
    """
    bundle = workshop.signed(keys[0], fleet="staging")
    monkeypatch.setattr(staging, "check_admitted", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        send(provisioned, bundle, workshop, interrupted_at_the_commit(provisioned))
    monkeypatch.undo()

    assert provisioned.refusal(StageCommit(bundle.digest)).kind == "PreconditionError"
    assert placed(provisioned) == []

    monkeypatch.setattr(staging, "check_admitted", lambda *_, **__: None)
    provisioned.call(StageCommit(bundle.digest))
    assert placed(provisioned) != []


def interrupted_at_the_commit(host):
    """
    Return a change of uploads that lets all of them arrive, and none be committed.
    """
    real = host.call

    def call(request):
        if isinstance(request, StageCommit):
            host.call = real
            raise KeyboardInterrupt
        return real(request)

    host.call = call
    return lambda name, data: data


@pytest.mark.parametrize("settings", ["{}", "[]", '{"fleet": 5}', "[" * 100_000, "\xff"])
def test_a_host_that_does_not_know_its_fleet_takes_nothing(provisioned, bundle, workshop, settings):
    """
    An older provisioning wrote no name.
    """
    provisioned.layout.host_config.write_text(settings, encoding="latin-1")

    error = refusal(provisioned, bundle, workshop)

    assert (error.kind, error.fix) == ("PreconditionError", "inv provision")


# -- the counter


def test_the_counter_grows_and_a_rebuilt_bundle_keeps_its_own(workshop):
    """
    Also on a machine whose clock went back.
    """
    first = workshop.build("v1").manifest
    again = workshop.build("v1", now_s=NOW_S + 100).manifest
    later = workshop.build("v2", now_s=NOW_S - 100).manifest
    other = workshop.build("v3", now_s=NOW_S - 100, fleet="staging").manifest

    assert (first.counter, again.counter) == (NOW_S, NOW_S)
    assert later.counter == NOW_S + 1
    assert other.counter == NOW_S - 100  # each fleet counts for itself


def test_an_older_bundle_is_refused_once_a_newer_one_was_good(provisioned, workshop, keys):
    """
    A valid signature of yesterday is no permission to bring yesterday's holes back.
    """
    older = workshop.signed(keys[0], "v1", now_s=NOW_S)
    newer = staged(provisioned, workshop, keys, "v2", NOW_S + 10)
    good(provisioned, newer)

    error = refusal(provisioned, older, workshop)

    assert error.kind == "PreconditionError"
    assert "--allow-older" in error.fix
    assert not provisioned.layout.release(older.digest).exists()
    manifest = older.manifest_path.read_text()
    assert provisioned.call(StageMissing(manifest, allow_older=True)).bundle is True


def test_an_older_bundle_that_is_staged_already_is_not_started(provisioned, workshop, keys):
    """
    It never was good here.  With the permission it starts, and the journal has it.
    """
    older = staged(provisioned, workshop, keys, "v1", NOW_S)
    newer = staged(provisioned, workshop, keys, "v2", NOW_S + 10)
    good(provisioned, newer)

    assert provisioned.refusal(SlotStart("green", older.digest)).kind == "PreconditionError"
    provisioned.call(SlotStart("green", older.digest, allow_older=True))
    intents = [line for line in provisioned.journal() if line["step"] == "slot.start"]
    assert intents[-1]["args"]["allow_older"] is True
    assert "allow_older" not in intents[0]["args"]


def test_a_good_release_needs_no_permission(provisioned, workshop, keys):
    """
    A rollback goes to it.
    """
    older = staged(provisioned, workshop, keys, "v1", NOW_S)
    good(provisioned, older)
    newer = staged(provisioned, workshop, keys, "v2", NOW_S + 10)
    good(provisioned, newer)

    assert provisioned.call(SlotStart("green", older.digest)).started is True


def test_a_good_release_can_be_started_after_its_fleet_was_renamed(provisioned, workshop, keys):
    """
    It was accepted when it came; a rollback depends on it.  Others of the old name are refused.
    """
    first = staged(provisioned, workshop, keys, "v1", NOW_S)
    good(provisioned, first)
    never_good = staged(provisioned, workshop, keys, "v2", NOW_S + 10)
    provisioned.layout.host_config.write_text('{"fleet": "renamed"}')

    assert "another fleet" in provisioned.refusal(SlotStart("green", never_good.digest)).what
    assert provisioned.call(SlotStart("green", first.digest)).started is True


def test_a_bundle_that_was_only_tried_blocks_no_other(provisioned, workshop, keys):
    """
    The counter follows what was good: a refused canary does not count.
    """
    older = workshop.signed(keys[0], "v1", now_s=NOW_S)
    staged(provisioned, workshop, keys, "v2", NOW_S + 10)

    send(provisioned, older, workshop)

    assert provisioned.call(SlotStart("green", older.digest)).started is True


def test_the_counter_survives_a_rollback_and_a_shorter_journal(provisioned, workshop, keys):
    """
    It is a file of its own, written before the journal's line.
    """
    older = workshop.signed(keys[0], "v1", now_s=NOW_S)
    newer = staged(provisioned, workshop, keys, "v2", NOW_S + 10)
    good(provisioned, newer)
    provisioned.layout.journal.write_text("")

    assert refusal(provisioned, older, workshop).kind == "PreconditionError"
    assert provisioned.layout.counter.read_text() == f"{NOW_S + 10}\n"
    assert provisioned.layout.counter.stat().st_mode & 0o777 == 0o600


def test_a_damaged_counter_is_named(provisioned, workshop, keys, bundle):
    """
    With the permission the next good release writes it anew.
    """
    provisioned.layout.counter.write_text("x")

    assert "is damaged" in refusal(provisioned, bundle, workshop).what
    manifest = bundle.manifest_path.read_text()
    provisioned.call(StageMissing(manifest, allow_older=True))
    provisioned.layout.counter.unlink()
    send(provisioned, bundle, workshop)
    write_atomic(provisioned.layout.counter, b"x", 0o600)
    good(provisioned, bundle)
    assert provisioned.layout.counter.read_text() == f"{NOW_S}\n"


# -- bundles of older releases of slipway


def in_the_old_format(host, bundle, key):
    """
    Place *bundle* as an older host program did: in format 1, readable by all.
    """
    old = dataclasses.replace(bundle.manifest, format=1, fleet="", counter=0)
    directory = bundle.directory.with_name(old.digest)
    bundle.directory.rename(directory)
    (directory / "manifest.json").write_bytes(old.to_bytes())
    return sign_bundle(
        dataclasses.replace(bundle, digest=old.digest, manifest=old, directory=directory), key=key
    )


def test_an_old_bundle_is_not_staged_anew(provisioned, workshop, keys):
    """
    It names no fleet and no counter.
    """
    old = in_the_old_format(provisioned, workshop.signed(keys[0]), keys[0])

    error = refusal(provisioned, old, workshop)

    assert error.kind == "PreconditionError"
    assert "inv bundle" in error.fix


def test_an_old_bundle_that_is_there_stays_usable(provisioned, workshop, keys, monkeypatch):
    """
    A rollback across an upgrade depends on it.
    """
    old = in_the_old_format(provisioned, workshop.signed(keys[0]), keys[0])
    monkeypatch.setattr(staging, "check_admitted", lambda *_, **__: None)
    send(provisioned, old, workshop)
    monkeypatch.undo()
    newer = staged(provisioned, workshop, keys, "v2", NOW_S + 10)
    good(provisioned, newer)

    assert send(provisioned, old, workshop).names == ()
    assert provisioned.call(SlotStart("green", old.digest)).started is True
    assert provisioned.status().slots["green"].version == "v1"


# -- the signer


def public(key):
    return key.with_suffix(".pub").read_text().strip()


@pytest.mark.parametrize(
    ("line", "is_allowed"),
    [
        ("{identity} {key}", True),
        ("*@example.org {key}", True),
        ('{identity} namespaces="slipway-bundle" {key}', True),
        ('{identity} namespaces="slipway-*" {key}', True),
        ("!{identity},*@example.org {key}", False),
        ("*@example.org,!{identity} {key}", False),
        ("!*@example.org,* {key}", False),
        ("bob@example.org {key}", False),
        ('{identity} namespaces="file" {key}', False),
        ('{identity} valid-before="20200101" {key}', False),
        ('{identity} valid-after="20990101" {key}', False),
        ("{identity} cert-authority {key}", False),
    ],
)
def test_the_allowed_signers_are_read_as_ssh_keygen_reads_them(
    provisioned, workshop, keys, line, is_allowed
):
    """
    A negated pattern, an option that does not fit or another identity: refused.
    """
    bundle = workshop.signed(keys[0])
    text = line.format(identity=IDENTITY, key=public(keys[0]))
    provisioned.layout.allowed_signers.write_text(f"{text}\n")

    if is_allowed:
        assert send(provisioned, bundle, workshop).staged.signer == IDENTITY
    else:
        assert refusal(provisioned, bundle, workshop).kind == "BundleUnsigned"
        assert placed(provisioned) == []


@pytest.mark.parametrize("identity", ["*@example.org", "!ann@example.org", "a,b", "-f", "a b", '"'])
def test_an_identity_that_is_a_pattern_is_refused(provisioned, workshop, keys, identity):
    """
    ssh-keygen would match it with itself, past the negation.  No manifest has such a signer, so
    this is the second guard.
    """
    bundle = workshop.signed(keys[0])
    text = f"!ann@example.org,*@example.org,-f,a {public(keys[0])}\n"
    provisioned.layout.allowed_signers.write_text(text)

    with pytest.raises(HostError, match="no valid signature"):
        verify_as(identity, provisioned, bundle)


def test_without_that_refusal_a_pattern_would_pass(provisioned, workshop, keys, monkeypatch):
    """
    Negative control.
    """
    bundle = workshop.signed(keys[0])
    text = f"!ann@example.org,*@example.org {public(keys[0])}\n"
    provisioned.layout.allowed_signers.write_text(text)
    monkeypatch.setattr(verify, "_IDENTITY", verify.re.compile(".*"))

    verify_as("*@example.org", provisioned, bundle)


def verify_as(identity, provisioned, bundle):
    signature = bundle.directory / SIGNATURE
    manifest = (bundle.directory / MANIFEST).read_bytes()
    signers = provisioned.layout.allowed_signers
    verify.check_signature(System(provisioned.layout), manifest, identity, signature, signers)


def test_a_bundle_signed_anew_after_a_rotation_is_accepted(provisioned, workshop, keys, tmp_path):
    """
    The host has it already, with the signature of a signer who is allowed no more.
    """
    bundle = staged(provisioned, workshop, keys, "v1", NOW_S)
    new_key, new_signers = make_key(tmp_path / "new")
    provisioned.layout.allowed_signers.write_text(new_signers.read_text())
    assert refusal(provisioned, bundle, workshop).kind == "BundleUnsigned"

    again = sign_bundle(bundle, key=new_key)
    sent = send(provisioned, again, workshop)

    assert sent.staged.placed_bundle is False
    stored = provisioned.layout.release(bundle.digest) / "manifest.json.sig"
    assert stored.read_bytes() == again.signature_path.read_bytes()
    assert stored.stat().st_mode & 0o777 == 0o640
    assert send(provisioned, again, workshop).names == ()


# -- huge and hostile manifests


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"format": 2, "files": ' + "[" * 200_000, "{}", "null", '{"format": 99}', ""],
)
def test_a_manifest_that_is_no_manifest_is_refused(provisioned, text):
    """
    By one error, whatever its depth.
    """
    error = provisioned.refusal(StageMissing(text))

    assert error.kind in ("BundleTampered", "PreconditionError")


def test_a_manifest_larger_than_its_limit_is_not_read(provisioned, bundle, workshop, monkeypatch):
    """
    The upload is bounded before it is hashed or parsed.
    """
    monkeypatch.setattr(verify, "MANIFEST_MAX", 100)

    error = refusal(provisioned, bundle, workshop)

    assert error.kind == "BundleUnsigned"
    assert "more than 100 bytes" in error.why


@pytest.mark.parametrize("name", ["manifest.json.part", "manifest.json.sig.part", "files.tar.part"])
def test_an_upload_that_is_a_link_is_refused(provisioned, bundle, workshop, name):
    """
    It would let root read, hash and publish another file.
    """
    with pytest.raises(KeyboardInterrupt):
        send(provisioned, bundle, workshop, interrupted_at_the_commit(provisioned))
    path = provisioned.layout.incoming / bundle.digest / name
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")

    error = provisioned.refusal(StageCommit(bundle.digest))

    assert error.kind in ("BundleUnsigned", "CommandFailed", "BundleTampered")
    assert placed(provisioned) == []


def test_the_fleet_of_a_host_is_what_provisioning_wrote(provisioned):
    settings = json.loads(provisioned.layout.host_config.read_text())

    assert admission.fleet_of(provisioned.system) == settings["fleet"]
