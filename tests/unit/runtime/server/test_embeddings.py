import asyncio
import base64
import json
import os
import signal
import threading
from array import array

import httpx
import openai
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from runtime.contract import EXIT_OK
from runtime.engines.base.protocol import FinishReason
from tests.unit.runtime.in_process import in_process
from tests.unit.runtime.server.test_grammars import settle
from tests.unit.runtime.serving import CONTEXT, Runtime, assert_is_error
from tests.unit.runtime.started import DEADLINE_S

pytestmark = pytest.mark.anyio
DIMENSIONS = 3


@pytest.fixture
async def embedding():
    """
    A runtime whose model makes embeddings (3, 4, number of tokens), which may be cut to 2.
    """
    runtime = Runtime()
    runtime.serving.generator.make_embeddings(DIMENSIONS, [2])
    yield runtime
    assert runtime.engine.running == {}
    assert runtime.serving.generator.promised == 0


async def embed(runtime, input, **body):
    return await runtime.http.post("/v1/embeddings", json={"input": input} | body)


@pytest.mark.parametrize(
    ("input", "lengths"),
    [
        ("abc", [3]),
        (["abc", "d"], [3, 1]),
        ([5, 6], [2]),
        ([[5, 6], [7]], [2, 1]),
        ([[5, 6], "abc"], [2, 3]),
        (["x"] * 100, [1] * 100),
    ],
)
async def test_each_text_gets_its_vector(embedding, input, lengths):
    """
    In the order of the texts, which are texts or token ids; usage counts all tokens.
    """
    response = await embed(embedding, input, user="u", model="lab")
    assert response.status_code == 200, response.text
    document = response.json()
    assert [each["embedding"] for each in document["data"]] == [[3, 4, n] for n in lengths]
    assert [each["index"] for each in document["data"]] == list(range(len(lengths)))
    assert {each["object"] for each in document["data"]} == {"embedding"}
    tokens = {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}
    assert (document["object"], document["model"], document["usage"]) == ("list", "lab", tokens)


async def test_base64_has_the_same_values(embedding):
    document = (await embed(embedding, "abc", encoding_format="base64")).json()
    data = base64.b64decode(document["data"][0]["embedding"])
    assert list(array("f", data)) == [3, 4, 3]


async def test_vectors_are_cut_where_the_model_allows_it(embedding):
    """
    Then they have the length 1; other sizes are refused.
    """
    document = (await embed(embedding, "abc", dimensions=2)).json()
    assert document["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
    whole = (await embed(embedding, "abc", dimensions=DIMENSIONS)).json()
    assert whole["data"][0]["embedding"] == [3, 4, 3]
    response = await embed(embedding, "abc", dimensions=1)
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == "dimensions"
    assert "2, 3" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": ""}, "invalid_request", "input"),
        ({"input": []}, "invalid_request", "input"),
        ({"input": [[]]}, "invalid_request", "input"),
        ({"input": ["x"] * 2049}, "invalid_request", "input"),
        ({"input": [1, "x"]}, "invalid_request", "input"),
        ({"input": None}, "invalid_request", "input"),
        ({}, "invalid_request", "input"),
        ({"input": "x", "encoding_format": "hex"}, "invalid_request", "encoding_format"),
        ({"input": "x", "dimensions": 0}, "invalid_request", "dimensions"),
        ({"input": "x", "other": 1}, "invalid_request", "other"),
        ({"input": "x" * (CONTEXT + 1)}, "context_length_exceeded", "input"),
        ({"input": [-1]}, "unknown_token", "input"),
        ({"input": [0x110000]}, "unknown_token", "input"),
        ({"input": ["x", "y" * (CONTEXT + 1)]}, "context_length_exceeded", "input"),
    ],
)
async def test_a_bad_request_names_its_field(embedding, body, code, param):
    response = await embedding.http.post("/v1/embeddings", json=body)
    assert_is_error(response, 400, code, retry_safe=False)
    assert response.json()["error"]["param"] == param
    assert embedding.engine.asked == []


async def test_a_model_without_embeddings_says_so(runtime):
    """
    And one without text: each names what it can't do.
    """
    response = await embed(runtime, "abc")
    assert_is_error(response, 400, "not_supported", retry_safe=False)
    assert "no embeddings" in response.json()["error"]["message"]
    runtime.serving.generator.generates = False
    for response in (await runtime.chat("hi"), await runtime.complete(), await runtime.generate()):
        assert_is_error(response, 400, "not_supported", retry_safe=False)
        assert "/v1/embeddings" in response.json()["error"]["message"]
    assert runtime.serving.generator.promised == 0


@pytest.mark.parametrize(
    ("ending", "status", "code", "retry_safe"),
    [
        (FinishReason.NONFINITE, 500, "engine_nonfinite", True),
        (FinishReason.EXPIRED, 504, "deadline_exceeded", False),
        (FinishReason.DIED, 502, "engine_died", False),
    ],
)
async def test_a_text_that_fails_fails_its_request(embedding, ending, status, code, retry_safe):
    """
    The other texts of the request are cancelled.
    """
    embedding.engine.will(ending=None)
    embedding.engine.will(ending=ending)
    response = await embed(embedding, ["a", "b"])
    assert_is_error(response, status, code, retry_safe=retry_safe)
    assert embedding.engine.cancelled == [0]


async def test_a_full_queue_refuses(embedding):
    embedding.engine.busy = 1000
    assert_is_error(await embed(embedding, "a"), 503, "queue_full", retry_safe=True)


async def test_a_request_holds_one_place_whatever_it_embeds():
    """
    Its texts in the engine take none from the others.
    """
    runtime = Runtime(max_batch_requests=2, max_queue_requests=1)
    generator, engine = runtime.serving.generator, runtime.engine
    generator.make_embeddings(DIMENSIONS, [])
    for _ in range(20):
        engine.will(ending=None)
    embedding = asyncio.create_task(embed(runtime, ["a"] * 20))
    await settle()
    assert len(engine.running) == 20
    assert generator.load.in_flight == 1
    engine.will("abc")
    assert (await runtime.generate()).status_code == 200
    embedding.cancel()
    await asyncio.wait([embedding])
    assert (engine.running, generator.load.in_flight) == ({}, 0)


async def test_a_place_is_taken_once_the_body_is_there(embedding):
    """
    A client that sends nothing keeps nobody out.
    """
    places = []
    generator = embedding.serving.generator

    class Silent(httpx.AsyncByteStream):
        async def __aiter__(self):
            places.append(generator.promised)
            yield b'{"input": "a"}'

    headers = {"content-type": "application/json", "content-length": "14"}
    answer = await embedding.http.post("/v1/embeddings", content=Silent(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert places == [0]
    assert generator.promised == 0


async def test_the_official_client_reads_both_forms(embedding):
    """
    It asks for base64 by itself.
    """
    client = openai.AsyncOpenAI(
        api_key="x", base_url="http://runtime/v1", http_client=embedding.http, max_retries=0
    )
    answer = await client.embeddings.create(model="lab", input=["ab", "abc"])
    assert [each.embedding for each in answer.data] == [[3, 4, 2], [3, 4, 3]]
    plain = await client.embeddings.create(model="lab", input="ab", encoding_format="float")
    assert plain.data[0].embedding == [3, 4, 2]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model="lab", input="x" * (CONTEXT + 1))
    assert caught.value.code == "context_length_exceeded"


class Client(threading.Thread):
    """
    Asks a started runtime for embeddings and for text, then ends it.
    """

    def __init__(self, path):
        super().__init__(daemon=True)
        self.answers, self._path = [], path

    def run(self):
        transport = httpx.HTTPTransport(uds=str(self._path))
        try:
            with httpx.Client(transport=transport, base_url="http://x", timeout=DEADLINE_S) as http:
                for route, body in (
                    ("/v1/embeddings", {"input": ["b a", "c"]}),
                    ("/generate", {"prompt": "a"}),
                ):
                    self.answers.append(http.post(route, json=body))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


def write_encoder(folder):
    """
    Write an encoder with the words [PAD], a, b and c, and mean pooling without a norm.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = BertModel(BertConfig(vocab_size=4, num_attention_heads=2, **sizes)).eval()
    model.save_pretrained(folder)
    vocabulary = {word: id for id, word in enumerate(("[PAD]", "a", "b", "c"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [{"type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return model


def test_an_encoder_is_served(tmp_path, monkeypatch, caplog):
    """
    From its directory to HTTP, through the engine's socket; the warm-up embeds.
    """
    (tmp_path / "model").mkdir()
    model = write_encoder(tmp_path / "model")
    (tmp_path / "config.yml").write_text("version: v1\nmodel_name: tiny\nthreads: 1\n")
    monkeypatch.setenv("SLIPWAY_RELEASE_DIR", str(tmp_path))
    monkeypatch.setenv("SLIPWAY_SLOT", "green")
    monkeypatch.setenv("SLIPWAY_SOCKET", str(tmp_path / "s"))
    client = Client(tmp_path / "s")
    with in_process(monkeypatch, caplog, client.start) as start:
        assert start() == (EXIT_OK, "")
    client.join(DEADLINE_S)
    embeddings, text = client.answers
    assert embeddings.status_code == 200, embeddings.text
    with torch.inference_mode():
        for tokens, found in zip([[2, 1], [3]], embeddings.json()["data"], strict=True):
            wanted = model(torch.tensor([tokens])).last_hidden_state[0].mean(0)
            torch.testing.assert_close(torch.tensor(found["embedding"]), wanted, atol=1e-5, rtol=0)
    assert text.json()["error"]["code"] == "not_supported"
