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

from deploy.lab.config import LabConfig
from tests.lab.own_lab import booted_lab, fleet_document, inv, write_fleet_file
from tests.lab.test_hostile_slot import serving
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
    with booted_lab("real", 1) as config:
        yield config


@pytest.fixture(scope="module")
def fleet(config, tmp_path_factory):
    """
    The path of the fleet file.
    """
    document = fleet_document(
        config,
        (HOST,),
        service={
            "threads": 2,
            "memory_max": "3GiB",
            "context_tokens": 2048,
            "max_batch_requests": 8,
            "state_max": "64MiB",
            "tmp_max": "64MiB",
            "start_timeout": "120s",
        },
        release={"lease_ttl": "15s"},
    )
    return write_fleet_file(tmp_path_factory.mktemp("real") / "real.yml", document)


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
