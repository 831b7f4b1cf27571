"""
The whole API process except the socket and the engine, and helpers that read its answers.
"""

import json
from pathlib import Path

import httpx
from pydantic import SecretStr

from runtime.engines.base.sampling import SamplingParams
from runtime.server.api import create_app
from runtime.server.config import RuntimeConfig, Settings
from runtime.server.generation import Generator
from runtime.server.grammars import GrammarReader
from runtime.server.key_watch import KeyWatch
from runtime.server.lifecycle import Life, LifeEvent, Phase
from runtime.server.metrics import Metrics
from runtime.server.requests import GenerationRequest
from runtime.server.serving import Serving
from tests.unit.runtime.fakes import CharCodec, FakeChecker, FakeEngine, FakeTemplate

CONTEXT = 100
VOCABULARY = 0x110000
ERROR_KEYS = {"message", "type", "param", "code", "request_id", "retry_safe"}
TO = {
    Phase.LOADING: (),
    Phase.WARMING: (LifeEvent.LOADED,),
    Phase.READY: (LifeEvent.LOADED, LifeEvent.WARMED),
    Phase.DRAINING: (LifeEvent.LOADED, LifeEvent.WARMED, LifeEvent.TERMINATED),
    Phase.FAILED: (LifeEvent.LOADED, LifeEvent.WARMED, LifeEvent.BROKEN),
}


class Runtime:
    """
    One API process, ready by default.

    Attributes:
        engine: The fake engine; a test announces its answers.
        http: A client of the application, without a socket.
    """

    def __init__(
        self, phase=Phase.READY, tokens=(), template=None, keys=None, checker=None, **config
    ):
        self.engine = FakeEngine()
        self.settings = Settings(
            config=RuntimeConfig(version="v1.2.0", model_name="lab", **config),
            slot="blue",
            release_dir=Path("/nowhere"),
            socket=Path("/nowhere/socket"),
            port=None,
            api_tokens=tuple(SecretStr(token) for token in tokens),
        )
        self.life = Life()
        for event in TO[phase]:
            self.life.on(event)
        self.metrics = Metrics("v1.2.0", "blue")
        check = GenerationRequest("are you there", SamplingParams(max_tokens=8))
        keys = keys or KeyWatch(None)
        self.serving = Serving(self.settings, self.life, self.metrics, check, keys=keys)
        self.serving.generator = Generator(
            self.engine,
            CharCodec(),
            self.settings.config.limits(CONTEXT, VOCABULARY),
            self.metrics.first_token,
            template or FakeTemplate(),
            grammars=GrammarReader(checker or FakeChecker()),
        )
        self.app = create_app(self.serving)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app), base_url="http://runtime"
        )

    async def chat(self, *messages, **body):
        """
        Send *messages*, each a text of the user or a whole message.
        """
        whole = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
        body = {"messages": whole} | body
        return await self.http.post("/v1/chat/completions", json=body)

    async def complete(self, prompt="ask", **body):
        return await self.http.post("/v1/completions", json={"prompt": prompt} | body)

    async def generate(self, **body):
        return await self.http.post("/generate", json={"prompt": "ask", "max_tokens": 9} | body)

    def counted(self, route, code):
        """
        Return the number of requests of *route* that the metrics count under *code*.
        """
        return self._sample("slipway_http_requests_total", f'route="{route}"', f'code="{code}"')

    def excused(self, reason, route="/generate"):
        """
        Return the number of requests of *route* that the metrics excuse for *reason*.
        """
        return self._sample("slipway_http_excused_total", f'route="{route}"', f'reason="{reason}"')

    def used(self, key):
        """
        Return the prompt tokens that the metrics count for *key*.
        """
        return self._sample("slipway_key_prompt_tokens_total", f'key="{key}"')

    def cached(self, key):
        """
        Return the tokens of them that the metrics count as found in the cache.
        """
        return self._sample("slipway_key_cached_tokens_total", f'key="{key}"')

    def _sample(self, name, *labels):
        lines = self.metrics.render().decode().splitlines()
        labels = (*labels, 'version="v1.2.0"', 'slot="blue"')
        samples = [
            line
            for line in lines
            if line.startswith(f"{name}{{") and all(label in line for label in labels)
        ]
        return float(samples[0].rsplit(" ", 1)[1]) if samples else 0.0


def assert_is_error(response, status, code, *, retry_safe):
    """
    Assert that *response* is the one error document, with the headers of every answer.
    """
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == ERROR_KEYS
    assert (error["code"], error["retry_safe"]) == (code, retry_safe)
    assert error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
    assert response.headers["x-slipway-version"] == "v1.2.0"
    assert response.headers["x-slipway-slot"] == "blue"


def events_of(response):
    """
    Return the events of a stream, as pairs of name and data.
    """
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        events.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return events
