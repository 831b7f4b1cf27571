"""
A real model on a booted host: SmolLM2-135M-Instruct is bundled, released and asked by chat.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import yaml

from deploy.lab import lab
from deploy.lab.config import LabConfig
from tests.lab.conftest import bring_up, say
from tests.lab.test_hostile_slot import inv, serving
from tests.real_model.convert import NAME
from tests.real_model.record import MAX_TOKENS, RECORDED, conversations

ROOT = Path(__file__).parents[2]
HOST, PORT = "n1", 8000


@pytest.fixture(scope="module")
def model():
    """
    The model directory, converted once for all runs.
    """
    directory = LabConfig.from_env(os.environ).directory.with_name("real-model") / "smollm2"
    argv = [sys.executable, "-m", "tests.real_model.convert", str(directory)]
    subprocess.run(argv, cwd=ROOT, check=True)
    return directory


@pytest.fixture(scope="module")
def config():
    default = LabConfig.from_env(os.environ)
    config = LabConfig(
        directory=default.directory.with_name("lab-real"),
        bases=default.bases,
        bridge="slipm",
        prefix="10.77.84",
    )
    bring_up(1, config)
    yield config
    lab.down(progress=say, config=config)


@pytest.fixture(scope="module")
def fleet(config, tmp_path_factory):
    """
    The path of the fleet file.
    """
    keys = config.keys
    document = {
        "row": "torch-2.13-cpu",
        "ssh": {"key": str(keys / "id_ed25519"), "known_hosts": str(keys / "known_hosts")},
        "service": {
            "device": "cpu",
            "precision": "fp32",
            "threads": 2,
            "memory_max": "3GiB",
            "context_tokens": 2048,
            "max_batch_requests": 8,
            "state_max": "64MiB",
            "tmp_max": "64MiB",
            "start_timeout": "120s",
        },
        "release": {"lease_ttl": "15s"},
        "signing": {
            "identity": "lab@slipway",
            "key": str(keys / "signing_ed25519"),
            "allowed_signers": str(keys / "allowed_signers"),
        },
        "hosts": {HOST: {"address": config.address(HOST)}},
    }
    path = tmp_path_factory.mktemp("real") / "real.yml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_it_answers_as_transformers_does(config, fleet, model):
    """
    Greedy, in float32, with the template of the model: text for text on twenty conversations.
    """
    inv(fleet, "provision", "--yes")
    bundle, _ = inv(fleet, "bundle", "--model", str(model), "--version", "smollm2-1")
    inv(fleet, "release", "--version", bundle["bundle"], "--allow-older", "--yes")
    assert serving(fleet) == {"smollm2-1": 100}

    url = f"http://{config.address(HOST)}:{PORT}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answers = [
            client.chat.completions.create(
                model=NAME, messages=messages, max_tokens=MAX_TOKENS, temperature=0
            )
            .choices[0]
            .message.content
            for messages in conversations()
        ]

    assert answers == json.loads(RECORDED.read_text())
