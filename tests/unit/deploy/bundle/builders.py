"""
Builds small valid inputs: a model, a wheel, a lock, a key, and a bundle of them.
"""

import base64
import hashlib
import io
import json
import struct
import subprocess
import sys
import zipfile

from deploy.bundle.build import build_bundle
from deploy.bundle.sign import sign_bundle
from deploy.bundle.store import BundleStore
from deploy.wheelhouse.lock import CachedWheel, Lock

IDENTITY = "ann@example.org"
FLEET, NOW_S = "prod", 1_750_000_000
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
GOLDEN = {"prompt": "sun", "max_tokens": 4, "expected": "rises"}


def safetensors(**tensors):
    """
    Return a safetensors file with the tensors, given as name and bytes.
    """
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


def make_model(directory, weights=b"\x01\x02\x03\x04" * 64, golden=(GOLDEN,)):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "glm4", "vocab_size": 8}))
    (directory / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    (directory / "model.safetensors").write_bytes(safetensors(w=weights))
    (directory / "golden.jsonl").write_text("".join(f"{json.dumps(g)}\n" for g in golden))
    return directory


def make_shards(directory):
    """
    Write a model in two files with an index.
    """
    make_model(directory)
    (directory / "model.safetensors").unlink()
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        (directory / name).write_bytes(safetensors(**{f"w{number}": b"\x05" * 32}))
    index = {
        "weight_map": {
            "w1": "model-00001-of-00002.safetensors",
            "w2": "model-00002-of-00002.safetensors",
        }
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def make_runtime(directory):
    (directory / "models").mkdir(parents=True)
    (directory / "__init__.py").write_text("")
    (directory / "__main__.py").write_text("print('serving')\n")
    (directory / "models" / "__init__.py").write_text("")
    (directory / "__pycache__").mkdir()
    (directory / "__pycache__" / "x.pyc").write_bytes(b"\0")
    return directory


def make_lock(directory, name="tinydep", version="1.0", code=b"ANSWER = 42\n"):
    """
    Return the lock of one small wheel in *directory*, with one module.
    """
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    contents = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={_urlsafe(data)},{len(data)}\n" for path, data in contents.items()
    )
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for path, data in contents.items():
            wheel.writestr(zipfile.ZipInfo(path), data)
    file = f"{name}-{version}-py3-none-any.whl"
    (directory / file).write_bytes(buffer.getvalue())
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    text = f"{name}=={version} --hash=sha256:{sha256}\n"
    return Lock(
        digest=hashlib.sha256(text.encode()).hexdigest(),
        text=text,
        python=PYTHON,
        wheels=(CachedWheel(file, sha256, len(buffer.getvalue()), directory / file, 1 << 20),),
    )


def _urlsafe(data):
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def make_key(directory, identity=IDENTITY, name="key"):
    """
    Return a private key, and the allowed signers file that lists it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    key, signers = directory / name, directory / f"{name}.allowed"
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    public = key.with_suffix(".pub").read_text().strip()
    signers.write_text(f'{identity} namespaces="slipway-bundle" {public}\n')
    return key, signers


class Workshop:
    """
    A directory with all inputs of a bundle.
    """

    def __init__(self, root):
        self.root = root
        self.model = make_model(root / "models" / "tiny")
        self.runtime = make_runtime(root / "checkout" / "runtime")
        self.wheels = root / "wheels"
        self.lock = make_lock(self.wheels)
        self.store = BundleStore(root / ".slipway")

    def build(self, version="v1", **more):
        args = {
            "model": self.model,
            "version": version,
            "row_name": "torch-2.13-cpu",
            "lock": self.lock,
            "identity": IDENTITY,
            "fleet": FLEET,
            "now_s": NOW_S,
            "runtime_dir": self.runtime,
            "store": self.store,
        }
        return build_bundle(**{**args, **more})

    def signed(self, key, version="v1", **more):
        return sign_bundle(self.build(version, **more), key=key)
