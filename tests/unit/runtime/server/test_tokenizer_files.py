"""
A tokenizer as transformers reads it from tokenizer.json and tokenizer_config.json.
"""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from runtime.contract.errors import ModelError
from runtime.server.text import MAX_CONTEXT_TOKENS, Detokenizer, TokenizerCodec
from tests.unit.runtime.builders import make_tokenizer
from tests.unit.runtime.server.test_text import Counting

BOS = "<s>"


def write(folder, tokenizer, **config):
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return TokenizerCodec(folder)


def make_metaspace():
    """
    Return a tokenizer of words whose decoder drops the first space of a text, and that adds BOS.
    """
    words = [BOS, "<unk>", "▁", *(f"▁{word}" for word in ("the", "sea", "is", "calm")), "sh"]
    vocabulary = {word: id for id, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([BOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    return tokenizer


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "~"},
        {"eos_token": {"__type": "AddedToken", "content": "~", "special": True}},
        {"eos_token": "</s>", "pad_token": "[PAD]"},
        {"added_tokens_decoder": {"95": {"content": "<|user|>", "special": True}}},
        {"added_tokens_decoder": {"93": {"content": "~", "special": False}}},
        {
            "added_tokens_decoder": {
                "95": {"content": "<a>", "special": False},
                "96": {"content": "<b>", "special": True},
            },
            "eos_token": "<b>",
        },
        {"pad_token": "[PAD]", "eos_token": "</s>", "bos_token": "<a>"},
        {"extra_special_tokens": ["[PAD]", "<b>"], "eos_token": "</s>"},
        {"additional_special_tokens": ["<b>", "</s>"], "extra_special_tokens": None},
        {"extra_special_tokens": {"image_token": "<b>"}, "eos_token": "</s>"},
    ],
)
def test_the_tokens_of_the_config_are_those_of_transformers(tmp_path, config):
    """
    Encoded and decoded alike, wherever the text has them.
    """
    if "93" in config.get("added_tokens_decoder", {}):
        id = make_tokenizer().token_to_id("~")
        config = {"added_tokens_decoder": {str(id): config["added_tokens_decoder"]["93"]}}
    codec = write(tmp_path, make_tokenizer(), **config)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("a~b", "ab</s>", "[PAD]c", "<|user|>hi", "<a><b>", "x <b> y"):
        ids = codec.encode(text)
        assert ids == theirs.encode(text)
        assert codec.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_the_tokens_of_an_old_map_are_those_of_transformers(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"additional_special_tokens": ["<a>", "<b>"], "pad_token": "[PAD]"})
    )
    codec = write(tmp_path, make_tokenizer(), eos_token="</s>")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert codec.encode("<a><b></s>[PAD]") == theirs.encode("<a><b></s>[PAD]")
    assert len(codec.encode("<a><b></s>[PAD]")) == 4  # negative control


def test_the_end_token_of_the_config_is_known(tmp_path):
    """
    Of a model whose config.json names none, and none for a tokenizer without one.
    """
    codec = write(tmp_path, make_tokenizer(), eos_token="~")
    assert codec.eos_token_ids == {make_tokenizer().token_to_id("~")}
    assert codec.decode(codec.encode("a~")) == "a"
    assert write(tmp_path, make_tokenizer()).eos_token_ids == frozenset()  # negative control


def test_an_added_token_with_another_id_is_refused(tmp_path):
    """
    Otherwise it would be another token to the model.
    """
    with pytest.raises(ModelError, match=r"added_tokens_decoder\.7"):
        write(tmp_path, make_tokenizer(), added_tokens_decoder={"7": {"content": "<new>"}})


def test_a_text_has_one_bos(tmp_path):
    """
    Also one that the client has rendered itself, with its BOS.
    """
    codec = write(tmp_path, make_metaspace())
    once = codec.encode("the sea")
    assert once[0] == 0
    assert codec.encode(f"{BOS}the sea") == once
    assert codec.encode(f"{BOS}{BOS}the sea") == [0, *once]  # the client wants two
    assert codec.encode("the sea", adds_special=False) == once[1:]


def test_the_first_space_of_an_answer_is_kept(tmp_path):
    """
    With a decoder that drops the first space of a text: the prompt comes before the answer.
    """
    codec = write(tmp_path, make_metaspace())
    prompt, answer = codec.encode("the sea"), codec.encode(" is calm", adds_special=False)[-2:]
    assert codec.decode(answer) == "is calm"  # negative control
    detokenizer = Detokenizer(codec, prompt)
    pieces = [detokenizer.add([token]) for token in answer]
    assert "".join(pieces) + detokenizer.add((), is_last=True) == " is calm"


@pytest.mark.parametrize("skipped", [1, 2, MAX_CONTEXT_TOKENS // 2])
def test_a_space_after_a_skipped_token_is_kept(tmp_path, skipped):
    """
    A special token has no text, so the word behind it is not the first of the answer.
    """
    codec = write(tmp_path, make_metaspace())
    the, sea = codec.encode("the sea", adds_special=False)
    answer = [the, *[codec.encode(BOS, adds_special=False)[0]] * skipped, sea]
    detokenizer = Detokenizer(codec)
    pieces = [detokenizer.add([token]) for token in answer]
    assert "".join(pieces) == codec.decode(answer) == "the sea"


def test_tokens_without_text_are_decoded_in_linear_time(tmp_path):
    """
    However many a model generates.
    """
    codec = write(tmp_path, make_metaspace())
    decoder = Counting(codec)
    detokenizer = Detokenizer(decoder)
    assert all(detokenizer.add([0]) == "" for _ in range(2000))
    assert decoder.count < 2000 * 3 * MAX_CONTEXT_TOKENS


def test_a_prompt_that_ends_within_a_character_adds_nothing(tmp_path):
    """
    The rest of the character is not text of the answer alone.
    """
    tokenizer = Tokenizer(models.BPE(vocab={"Ã": 0, "©": 1, "a": 2}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    codec = write(tmp_path, tokenizer)
    assert codec.decode([0, 1]) == "é"
    detokenizer = Detokenizer(codec, [2, 0])
    assert detokenizer.add([2], is_last=True) == "a"
