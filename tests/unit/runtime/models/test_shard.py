import pytest

from runtime.contract.errors import ModelError
from runtime.models.config import DecoderConfig
from runtime.models.shard import Shard
from tests.unit.runtime.builders import make_config_document


def read(**changes):
    return DecoderConfig.from_json(make_config_document(**changes), "config.json")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_shard_has_the_kv_heads_of_its_query_heads(size):
    """
    For any division of the heads.
    """
    heads, kv_heads = 16, 4
    covered = []
    for rank in range(size):
        shard = Shard(rank, size)
        mine, theirs = shard.span(heads), shard.kv_span(kv_heads)
        assert len(mine) == shard.heads(heads)
        assert len(theirs) == shard.kv_heads(kv_heads)
        assert [head * kv_heads // heads for head in mine] == [
            theirs[place * len(theirs) // len(mine)] for place in range(len(mine))
        ]
        covered += mine
    assert covered == list(range(heads))


@pytest.mark.parametrize(
    ("size", "changes", "words"),
    [
        (3, {"vocab_size": 300, "intermediate_size": 48}, ("3 GPUs", "4 attention heads")),
        (2, {"intermediate_size": 47}, ("47 MLP values",)),
        (2, {"vocab_size": 301}, ("301 vocabulary entries", "2 GPUs")),
        (4, {"num_attention_heads": 12, "num_key_value_heads": 6}, ("6 KV heads",)),
    ],
)
def test_an_uneven_division_is_refused(size, changes, words):
    """
    The error names the dimension and the divisor.
    """
    Shard(0, 1).check(read(**changes))  # negative control
    with pytest.raises(ModelError) as caught:
        Shard(0, size).check(read(**changes))
    assert all(word in str(caught.value) for word in words), str(caught.value)
