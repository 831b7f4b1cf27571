import pytest

from runtime.contract.generation_defaults import GenerationDefaults, read_generation_defaults


def test_a_published_file():
    """
    That of Llama 3.1: several end tokens, keys that have no effect here.
    """
    document = {
        "bos_token_id": 128000,
        "do_sample": True,
        "eos_token_id": [128001, 128008, 128009],
        "temperature": 0.6,
        "top_p": 0.9,
        "transformers_version": "4.42.3",
    }

    assert read_generation_defaults(document) == GenerationDefaults(
        temperature=0.6, top_p=0.9, stop_token_ids=frozenset({128001, 128008, 128009})
    )


def test_an_empty_file_says_nothing():
    assert read_generation_defaults({}) == GenerationDefaults()
    assert read_generation_defaults({"temperature": None, "eos_token_id": None}) == (
        GenerationDefaults()
    )


def test_all_keys():
    document = {
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
        "eos_token_id": 2,
        "temperature": 1,
        "top_p": 1.0,
    }

    assert read_generation_defaults(document) == GenerationDefaults(
        temperature=1.0,
        top_p=1.0,
        top_k=20,
        min_p=0.05,
        repetition_penalty=1.05,
        stop_token_ids=frozenset({2}),
    )


def test_no_sampling_is_greedy():
    document = {"do_sample": False, "temperature": 0.6}

    assert read_generation_defaults(document).temperature == 0


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_that_is_switched_off_is_none(top_k):
    assert read_generation_defaults({"top_k": top_k}).top_k is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0.6"),
        ("temperature", True),
        ("temperature", -0.1),
        ("temperature", 2.5),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", 1.5),
        ("top_k", -2),
        ("top_k", []),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1.0),
        ("eos_token_id", "2"),
        ("eos_token_id", -1),
        ("eos_token_id", [1, None]),
        ("eos_token_id", True),
    ],
)
def test_a_value_out_of_its_range_names_its_key(key, value):
    with pytest.raises(ValueError, match=f"^{key}: "):
        read_generation_defaults({key: value})
