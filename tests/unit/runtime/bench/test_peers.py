import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.bench import peers
from runtime.bench.shapes import SHAPES
from runtime.bench.system import BenchError, NotInstalled
from runtime.bench.transformers_peer import TransformersPeer
from runtime.bench.vllm_peer import VllmPeer
from runtime.bench.work import LINES, WorkItem, draw

TINY = SHAPES["tiny"]


@dataclass
class FakeVllm:
    """
    A strict fake of the package: records each request; answers lack *short* tokens.
    """

    __version__ = "0.26.0"
    short: int = 0

    def SamplingParams(self, **options):
        return SimpleNamespace(**options)

    def LLM(self, **options):
        self.options = options
        self.config = json.loads((Path(options["model"]) / "config.json").read_text())
        return SimpleNamespace(generate=self.generate)

    def generate(self, prompts, params, use_tqdm):
        self.asked = list(zip(prompts, params, strict=True))
        return [
            SimpleNamespace(
                outputs=[SimpleNamespace(token_ids=[0] * (each.max_tokens - self.short))]
            )
            for each in params
        ]


def open_vllm(monkeypatch, **options):
    fake = FakeVllm(**options)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return fake, VllmPeer(TINY, "cpu")


def test_vllm_runs_the_same_work(monkeypatch):
    """
    The same model shape with dummy weights, and the same prompts, greedily to full length.
    """
    fake, peer = open_vllm(monkeypatch)
    sample = peer.run((WorkItem([1, 2], 3), WorkItem([4], 5)))

    assert fake.options["load_format"] == "dummy"
    assert fake.options["skip_tokenizer_init"]
    assert fake.config.items() >= TINY.document.items()
    assert [prompt["prompt_token_ids"] for prompt, _ in fake.asked] == [[1, 2], [4]]
    assert [params.max_tokens for _, params in fake.asked] == [3, 5]
    assert all(p.ignore_eos and p.temperature == 0.0 for _, p in fake.asked)
    assert sample.tokens_per_s == pytest.approx(8 / sample.wall_s)
    assert peer.version == "0.26.0"

    peer.close()
    assert not Path(fake.options["model"]).exists()


def test_an_answer_of_the_wrong_length_fails_the_run(monkeypatch):
    """
    Fewer tokens would take less time.
    """
    _, peer = open_vllm(monkeypatch, short=1)
    with pytest.raises(BenchError, match="6 tokens instead of 8"):
        peer.run((WorkItem([1, 2], 3), WorkItem([4], 5)))


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_package_that_is_not_installed_is_reported_as_such(name, monkeypatch):
    """
    Nothing is imported for the check.
    """
    monkeypatch.setattr(peers.importlib.util, "find_spec", {}.get)
    with pytest.raises(NotInstalled):
        peers.PEERS[name](TINY, "cpu")


def test_transformers_runs_a_trimmed_workload():
    """
    A mix gets one answer length for all requests; the note says so.
    """
    peer = TransformersPeer(TINY, "cpu")
    for name in ("batch-8", "mix-256-both"):
        line = LINES[name].shrunk(TINY.shrink)
        work, note = peer.trim(line, draw(line, vocabulary=512, seed=0, run=0))
        work = work[:8]
        assert note == ("" if name == "batch-8" else "only 6 new tokens each")
        sample = peer.run(work)
        new_tokens = sum(request.new_tokens for request in work)
        assert sample.tokens_per_s == pytest.approx(new_tokens / sample.wall_s)
    peer.close()
