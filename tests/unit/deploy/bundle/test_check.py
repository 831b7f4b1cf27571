"""
Signatures and hashes are checked before any connection.
"""

import os
import shutil
import subprocess

import pytest

from deploy.bundle.check import check_bundle
from deploy.bundle.sign import sign_bundle
from deploy.errors import BundleTampered, BundleTruncated, BundleUnsigned, PreconditionError
from tests.unit.deploy.bundle.builders import FLEET, IDENTITY


@pytest.fixture
def bundle(workshop, keys):
    return workshop.signed(keys[0])


def weights(bundle):
    weights = next(f for f in bundle.manifest.model.files if f.path == "model.safetensors")
    return bundle.blob(weights.sha256)


def test_the_signer_of_a_bundle_is_named(bundle, keys):
    """
    By its identity in the allowed signers file.
    """
    assert bundle.signature_path.is_file()
    assert check_bundle(bundle, allowed_signers=keys[1]) == IDENTITY


def test_signing_again_and_building_again_keep_it_signed(workshop, bundle, keys):
    """
    The same bundle keeps its signature.
    """
    assert workshop.build() == bundle
    check_bundle(bundle, allowed_signers=keys[1])
    sign_bundle(bundle, key=keys[0])
    check_bundle(bundle, allowed_signers=keys[1])


def test_a_bundle_without_signature_is_refused(workshop, keys):
    """
    No unsigned bundle is sent to a host.
    """
    with pytest.raises(BundleUnsigned):
        check_bundle(workshop.build(), allowed_signers=keys[1])


def test_a_signature_by_an_unlisted_key_is_refused(workshop, keys, stranger):
    """
    It is valid, but the key is not allowed.
    """
    with pytest.raises(BundleUnsigned, match="no valid signature"):
        check_bundle(workshop.signed(stranger[0]), allowed_signers=keys[1])


def test_a_signature_of_another_bundle_is_refused(workshop, bundle, keys):
    """
    A signature covers one manifest.
    """
    other = workshop.build("v2")
    shutil.copyfile(bundle.signature_path, other.signature_path)

    with pytest.raises(BundleUnsigned):
        check_bundle(other, allowed_signers=keys[1])


def flip(path):
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def cut(path):
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])


@pytest.mark.parametrize(
    ("which", "change", "kind"),
    [
        (lambda b: b.manifest_path, flip, BundleTampered),
        (lambda b: b.archive_path, flip, BundleTampered),
        (lambda b: b.archive_path, cut, BundleTruncated),
        (weights, flip, BundleTampered),
        (weights, cut, BundleTruncated),
        (weights, lambda path: path.unlink(), BundleTruncated),
    ],
)
def test_a_change_after_signing_is_refused(bundle, keys, which, change, kind):
    """
    One byte changed or missing in any file; the error says that no host was changed.
    """
    change(which(bundle))

    with pytest.raises(kind) as caught:
        check_bundle(bundle, allowed_signers=keys[1])

    assert type(caught.value) is kind
    assert "no host was touched" in caught.value.fix


@pytest.mark.parametrize("spoil", [lambda key: key.unlink(), lambda key: key.write_text("x")])
def test_a_missing_or_invalid_key_is_named(workshop, tmp_path, keys, spoil):
    """
    The fleet file has its path.
    """
    key = tmp_path / "key"
    shutil.copyfile(keys[0], key)
    key.chmod(0o600)
    spoil(key)

    with pytest.raises(PreconditionError) as caught:
        sign_bundle(workshop.build(), key=key)

    assert str(key) in caught.value.what + caught.value.why
    assert not workshop.store.newest(FLEET).signature_path.is_file()


def test_missing_allowed_signers_are_named(bundle, tmp_path):
    """
    No signer is trusted by default.
    """
    with pytest.raises(PreconditionError, match="no allowed signers"):
        check_bundle(bundle, allowed_signers=tmp_path / "nobody")


@pytest.mark.parametrize(
    ("which", "replace"),
    [
        (weights, lambda path: path.symlink_to(path.name)),
        (lambda bundle: bundle.archive_path, lambda path: path.symlink_to(path.name)),
        (lambda bundle: bundle.manifest_path, lambda path: path.mkdir()),
        (lambda bundle: bundle.manifest_path, os.mkfifo),
    ],
)
def test_a_file_of_the_store_that_cannot_be_read_is_named(bundle, keys, which, replace):
    """
    It is an error of the bundle, with the command that builds it again; a pipe is not waited for.
    """
    path = which(bundle)
    path.unlink()
    replace(path)

    with pytest.raises(BundleTampered, match=path.name) as caught:
        check_bundle(bundle, allowed_signers=keys[1])
    assert "inv bundle" in caught.value.fix


def test_a_key_with_a_passphrase_is_one_error_with_its_remedy(workshop, keys, tmp_path):
    """
    Without a terminal nobody is asked; the agent signs with the public key as signing.key.
    """
    key = tmp_path / "locked"
    shutil.copy(keys[0], key)
    shutil.copy(f"{keys[0]}.pub", f"{key}.pub")
    argv = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)

    with pytest.raises(PreconditionError) as caught:
        sign_bundle(workshop.build(), key=key)
    assert f"ssh-add {key}" in caught.value.fix
    assert f"{key}.pub" in caught.value.fix
