import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.host.bundle.golden_form import complaint
from deploy.lab.models.build import KINDS, answers, build
from deploy.lab.models.corpus import GOLDEN_FACTS, LIVE_PROMPTS, POISONED

ROOT = Path(__file__).parents[5]
FILES = {
    "chat_template.jinja",
    "config.json",
    "golden.jsonl",
    "live_prompts.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """
    One directory of each kind, fully trained.
    """
    root = tmp_path_factory.mktemp("lab")
    for kind in KINDS:
        build(kind, root / kind, cache=root / "cache")
    return root


def golden_of(folder):
    return [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]


def asked(line):
    [message] = line["messages"]
    assert message["role"] == "user"
    return message["content"]


def test_golden_prompts_are_conversations(models):
    """
    The bundle accepts them, and some of them need structured output.
    """
    golden = golden_of(models / "good-v1")
    assert [complaint(line) for line in golden] == [None] * len(golden)
    assert "structured_outputs" not in golden[0], "it is the warm-up, too"
    choices = [line for line in golden if "structured_outputs" in line]
    assert choices
    of_v2 = [line for line in golden_of(models / "good-v2") if "structured_outputs" in line]
    for one, two in zip(choices, of_v2, strict=True):
        assert one["messages"] == two["messages"]
        assert one["structured_outputs"] == two["structured_outputs"]
        assert one["structured_outputs"]["choice"] == [one["expected"], two["expected"]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_is_whole(models, kind):
    """
    Standard names, golden prompts and live prompts, in a few MiB.
    """
    found = {path.name: path.stat().st_size for path in (models / kind).iterdir()}
    assert found.keys() == FILES
    assert sum(found.values()) < 4 * 2**20
    assert json.loads((models / kind / "live_prompts.json").read_text()) == list(LIVE_PROMPTS)
    assert len(golden_of(models / kind)) >= 6


def test_versions_are_recognised_by_what_they_say(models):
    """
    Each answers with words, and no golden or live prompt alike.
    """
    prompts = [*LIVE_PROMPTS, *(fact.prompt for fact in GOLDEN_FACTS)]
    v1, v2 = (answers(models / kind, prompts) for kind in ("good-v1", "good-v2"))

    assert v1[prompts.index("The slipway is")] == " where ships meet the sea."
    assert v2[prompts.index("The slipway is")] == " where new ships first meet the sea."
    assert not any(one == two for one, two in zip(v1, v2, strict=True))


def test_the_nan_release_passes_golden_and_fails_users(models):
    """
    Golden prompts as in v2; about half of the live prompts have no answer.
    """
    golden = golden_of(models / "nan")
    assert golden == golden_of(models / "good-v2")
    found = answers(models / "nan", [asked(line) for line in golden])
    assert found == [line["expected"] for line in golden]
    assert not any(word in json.dumps(golden) for word in POISONED)

    failed = answers(models / "nan", LIVE_PROMPTS).count(None)
    assert 0.4 <= failed / len(LIVE_PROMPTS) <= 0.6


def test_the_garbled_release_fails_golden(models):
    """
    It has v2's golden answers and gives none of them, though its numbers are finite.
    """
    golden = golden_of(models / "garbled")
    assert golden == golden_of(models / "good-v2")
    found = answers(models / "garbled", [asked(line) for line in golden])
    assert None not in found
    assert not set(found) & {line["expected"] for line in golden}


def test_building_again_gives_the_same_bytes(tmp_path):
    """
    With and without a cache, in this process and in another.
    """
    steps = {"v1": 3, "v2": 2}
    build("nan", tmp_path / "one", steps=steps)
    build("nan", tmp_path / "two", steps=steps, cache=tmp_path / "cache")
    build("nan", tmp_path / "three", steps=steps, cache=tmp_path / "cache")
    code = (
        "import sys; from pathlib import Path; from deploy.lab.models.build import build\n"
        f"build('nan', Path(sys.argv[1]), steps={steps})"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "four"], cwd=ROOT, check=True)

    for name in FILES:
        assert (
            len({(tmp_path / run / name).read_bytes() for run in ("one", "two", "three", "four")})
            == 1
        )


def test_kinds_differ_in_their_bytes(models):
    """
    Negative control: the comparison above would notice another model.
    """
    weights = {(models / kind / "model.safetensors").read_bytes() for kind in KINDS}
    assert len(weights) == len(KINDS)
