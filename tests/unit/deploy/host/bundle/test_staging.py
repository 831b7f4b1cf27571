"""
From a bundle on the controller to a release on the host: real signatures, real uv, real files.
"""

import io
import os
import shutil
import subprocess
import tarfile

import pytest

from deploy.host.bundle.manifest import canonical
from deploy.host.bundle.staging import blob_name, wheel_name
from deploy.host.protocol import StageCommit, StageMissing
from tests.unit.deploy.bundle.builders import make_key
from tests.unit.deploy.host.staged import damage, placed, refusal, send

# -- the good way


def test_a_staged_release_is_complete(provisioned, bundle, workshop):
    """
    Manifest, signature, code, configuration, lock, golden prompts, weights, and a working Python.
    """
    sent = send(provisioned, bundle, workshop)

    release = provisioned.layout.release(bundle.digest)
    assert sent.staged.signer == "ann@example.org"
    assert sent.staged.venv_built is True
    names = {p.relative_to(release).as_posix() for p in release.rglob("*") if p.is_file()}
    names = {name for name in names if "__pycache__" not in name}
    assert names == {
        "manifest.json", "manifest.json.sig", "config.yml", "golden.jsonl", "requirements.lock",
        "runtime/__init__.py", "runtime/__main__.py", "runtime/models/__init__.py",
    }  # fmt: skip
    assert (release / "model" / "model.safetensors").read_bytes() == (
        workshop.model / "model.safetensors"
    ).read_bytes()
    python = release / "venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", "import tinydep; print(tinydep.ANSWER)"], capture_output=True, check=True
    )
    assert done.stdout == b"42\n"


def test_the_service_may_read_and_not_write(provisioned, bundle, workshop):
    """
    Files are 0640 and directories 0750, whatever the umask: root writes, the runtime's group reads.
    """
    old = os.umask(0)
    try:
        send(provisioned, bundle, workshop)
    finally:
        os.umask(old)

    assert open_to_others(provisioned) == []


def open_to_others(host):
    """
    Return what is not 0640, or 0750 where it is a directory or a program.
    """
    layout = host.layout
    wrong = []
    for top in (layout.releases, layout.models, layout.venvs, layout.wheelhouse):
        for path in [top, *top.rglob("*")]:
            if not path.is_symlink():
                mode = path.stat().st_mode
                is_program = path.is_dir() or mode & 0o111
                if mode & 0o7777 != (0o750 if is_program else 0o640):
                    wrong.append((path, oct(mode)))
    return wrong


def test_what_an_older_host_program_placed_is_closed(provisioned, bundle, workshop, keys):
    """
    It was readable by all users; the next commit closes it.
    """
    send(provisioned, bundle, workshop)
    layout = provisioned.layout
    for top in (layout.releases, layout.models, layout.venvs):
        for path in top.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)
    assert open_to_others(provisioned) != []  # control
    (workshop.runtime / "__main__.py").write_text("print('serving better')\n")

    send(provisioned, workshop.signed(keys[0], "v2"), workshop)

    assert open_to_others(provisioned) == []


def test_the_runtime_is_compiled_with_its_final_path(provisioned, bundle, workshop):
    """
    The service can't write bytecode, and tracebacks show the path of the source.
    """
    send(provisioned, bundle, workshop)

    release = provisioned.layout.release(bundle.digest)
    compiled = list((release / "runtime" / "__pycache__").glob("__main__.*.pyc"))
    assert len(compiled) == 1
    assert str(release / "runtime" / "__main__.py").encode() in compiled[0].read_bytes()


def test_staging_again_sends_nothing(provisioned, bundle, workshop):
    """
    The host reports that nothing is missing.
    """
    first = send(provisioned, bundle, workshop)
    before = placed(provisioned)

    again = send(provisioned, bundle, workshop)

    assert len(first.names) == 7  # manifest, signature, archive, wheel, three of the model
    assert (again.names, again.size) == ((), 0)
    staged = again.staged
    assert (staged.placed_bundle, staged.placed_blobs, staged.placed_wheels) == (False, 0, 0)
    assert placed(provisioned) == before


def test_a_new_release_sends_only_what_changed(provisioned, bundle, workshop, keys):
    """
    With the same weights and lock, only the code is sent; the weights are on disk once.
    """
    send(provisioned, bundle, workshop)
    (workshop.runtime / "__main__.py").write_text("print('serving better')\n")
    second = workshop.signed(keys[0], "v2")

    sent = send(provisioned, second, workshop)

    assert sent.names == ("manifest.json", "manifest.json.sig", "files.tar")
    assert sent.staged.venv_built is False
    blob = provisioned.layout.blobs / second.manifest.model.files[1].sha256
    assert blob.stat().st_nlink == 2  # the blob and the one model that both releases lead to


def test_an_interrupted_upload_continues(provisioned, bundle, workshop):
    """
    Files that arrived completely are not sent again.
    """
    weights = blob_name(bundle.manifest.model.files[1].sha256)
    with pytest.raises(ConnectionError):
        send(provisioned, bundle, workshop, lambda n, d: None if n == weights else d)

    sent = send(provisioned, bundle, workshop).names

    assert weights in sent
    assert wheel_name(bundle.manifest.lock.wheels[0].file) not in sent


def test_uploads_are_removed_after_the_commit(provisioned, bundle, workshop):
    """
    INCOMING has only pending uploads.
    """
    send(provisioned, bundle, workshop)

    assert list(provisioned.layout.incoming.iterdir()) == []


# -- bad bundles


def in_the_middle(data):
    return data[:700] + bytes([data[700] ^ 1]) + data[701:]


def sizes(bundle):
    weights = bundle.manifest.model.files[1]
    assert weights.path == "model.safetensors"
    return blob_name(weights.sha256), wheel_name(bundle.manifest.lock.wheels[0].file)


@pytest.mark.parametrize(
    ("which", "change", "kind"),
    [
        ("manifest.json", damage, "BundleUnsigned"),
        ("manifest.json.sig", lambda data: b"", "BundleUnsigned"),
        ("manifest.json.sig", lambda data: b"nonsense", "BundleUnsigned"),
        ("files.tar", in_the_middle, "BundleTampered"),
        ("files.tar", lambda data: data + b"\0" * 512, "BundleTampered"),
        ("files.tar", lambda data: data[:-512], "BundleTruncated"),
        ("weights", damage, "BundleTampered"),
        ("weights", lambda data: data[:-1], "BundleTruncated"),
        ("weights", lambda data: data + b"x", "BundleTampered"),
        ("wheel", damage, "BundleTampered"),
        ("wheel", lambda data: data[: len(data) // 2], "BundleTruncated"),
    ],
)
def test_unsigned_bytes_are_never_unpacked(provisioned, bundle, workshop, which, change, kind):
    """
    One byte more, less or changed in any file: refused by name, and nothing is placed.
    """
    weights, wheel = sizes(bundle)
    name = {"weights": weights, "wheel": wheel}.get(which, which)

    error = refusal(
        provisioned, bundle, workshop, lambda n, data: change(data) if n == name else data
    )

    assert error.kind == kind
    assert placed(provisioned) == []
    assert provisioned.journal()[-1]["error"]["kind"] == kind


def test_a_tampered_file_is_requested_again(provisioned, bundle, workshop):
    """
    Its size was right; a second try with the right content succeeds.
    """
    weights, _ = sizes(bundle)
    refusal(provisioned, bundle, workshop, lambda n, d: damage(d) if n == weights else d)

    assert weights in send(provisioned, bundle, workshop).names


def test_an_unsigned_bundle_is_refused(provisioned, workshop, keys, tmp_path):
    """
    No signature, one by an unknown key, or one for another purpose.
    """
    bundle = workshop.build()
    stranger, _ = make_key(tmp_path / "stranger")
    for key, namespace in ((stranger, "slipway-bundle"), (keys[0], "file")):
        shutil.copyfile(bundle.manifest_path, tmp_path / "m")
        argv = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(key), "-n", namespace]
        subprocess.run([*argv, str(tmp_path / "m")], check=True)
        (tmp_path / "m.sig").replace(bundle.signature_path)

        assert refusal(provisioned, bundle, workshop).kind == "BundleUnsigned"
        shutil.rmtree(provisioned.layout.incoming)

    assert placed(provisioned) == []


def test_a_host_without_allowed_signers_refuses_every_bundle(provisioned, bundle, workshop):
    """
    No signer is trusted by default.
    """
    provisioned.layout.allowed_signers.unlink()

    assert refusal(provisioned, bundle, workshop).kind == "PreconditionError"
    assert placed(provisioned) == []


def test_a_signed_manifest_of_another_bundle_is_refused(provisioned, bundle, workshop, keys):
    """
    A valid signature of an old bundle does not cover a new one.
    """
    older = workshop.signed(keys[0], "v0")
    swap = {
        "manifest.json": older.manifest_path.read_bytes(),
        "manifest.json.sig": older.signature_path.read_bytes(),
    }

    error = refusal(provisioned, bundle, workshop, lambda n, data: swap.get(n, data))

    assert error.kind == "BundleTampered"
    assert placed(provisioned) == []


def link_in_the_archive(kind, target):
    """
    Return a change of files.tar: config.yml becomes a link of *kind* to *target*.
    """

    def change(name, data):
        if name != "files.tar":
            return data
        rewritten = io.BytesIO()
        with (
            tarfile.open(fileobj=io.BytesIO(data)) as old,
            tarfile.open(fileobj=rewritten, mode="w", format=tarfile.USTAR_FORMAT) as new,
        ):
            for member in old:
                contents = old.extractfile(member)
                if member.name == "config.yml":
                    member.type, member.linkname, member.size = kind, target, 0
                new.addfile(member, contents if member.isreg() else None)
        return rewritten.getvalue().ljust(len(data), b"\0")

    return change


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_are_never_unpacked(provisioned, bundle, workshop, kind):
    """
    Any member that is not a plain file is refused.
    """
    error = refusal(provisioned, bundle, workshop, link_in_the_archive(kind, "/etc/shadow"))

    assert error.kind == "BundleTampered"
    assert placed(provisioned) == []


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/evil", "a/../../evil", "runtime//x", "venv", "a\nb"]
)
def test_a_path_outside_of_the_release_is_refused_even_if_signed(provisioned, bundle, path):
    """
    A signature proves the author, not that the content is harmless.
    """
    document = bundle.manifest.document()
    document["files"][0]["path"] = path

    error = provisioned.refusal(StageMissing(canonical(document).decode()))

    assert error.kind == "BundleTampered"


def test_a_commit_without_uploads_is_refused(provisioned, bundle):
    """
    There is nothing to verify.
    """
    error = provisioned.refusal(StageCommit(bundle.digest))

    assert error.kind == "BundleTruncated"


# -- disk


def test_a_disk_that_is_too_small_is_refused_before_an_upload(provisioned, bundle, workshop):
    """
    The error has the needed and the free space.
    """
    provisioned.system.free = 1 << 20

    error = refusal(provisioned, bundle, workshop)

    assert error.kind == "DiskTooSmall"
    assert "1 MiB are free" in error.why
    assert not provisioned.layout.incoming.exists()


def test_files_on_the_host_need_no_further_space(provisioned, bundle, workshop):
    """
    A full disk does not stop a release that is staged already.
    """
    send(provisioned, bundle, workshop)
    provisioned.system.free = 0

    assert send(provisioned, bundle, workshop).names == ()


def test_stage_missing_creates_only_the_upload_directory(provisioned, bundle):
    """
    Nothing else on the host changes.
    """
    before = set(provisioned.root.rglob("*"))

    needs = provisioned.call(StageMissing(bundle.manifest_path.read_text()))

    assert (needs.bundle, needs.venv, len(needs.blobs)) == (True, True, 3)
    incoming = provisioned.layout.incoming
    assert set(provisioned.root.rglob("*")) - before == {incoming, incoming / bundle.digest}
