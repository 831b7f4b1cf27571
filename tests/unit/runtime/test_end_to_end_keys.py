"""
API keys with real processes: the file changes while `python -m runtime` serves.
"""

import json

import pytest

from tests.unit.runtime.builders import write_model
from tests.unit.runtime.server.test_key_file import digest_of
from tests.unit.runtime.started import closing, until
from tests.unit.runtime.test_end_to_end import SlipwayRuntime

WEB, ANN = "sk-slipway-web", "sk-slipway-ann"


class KeyedRuntime(SlipwayRuntime):
    def __init__(self, folder, model, keys):
        self.keys = keys
        self.env = {"SLIPWAY_KEYS_FILE": str(keys)}
        super().__init__(folder, model, env=self.env)

    def write(self, version, **tokens):
        keys = [
            {"name": name, "secrets": [{"sha256": digest_of(token.encode())}]}
            for name, token in tokens.items()
        ]
        draft = self.keys.with_name("draft")
        draft.write_text(json.dumps({"format": 1, "version": version, "keys": keys}))
        draft.replace(self.keys)

    def status(self, token):
        headers = {"authorization": f"Bearer {token}"}
        body = {"prompt": "ask", "max_tokens": 2}
        return self.http.post("/generate", json=body, headers=headers).status_code


@pytest.fixture
def runtime(tmp_path):
    model = write_model(tmp_path / "model_files", max_position_embeddings=128)
    with closing(KeyedRuntime(tmp_path / "blue", model, tmp_path / "keys.json")) as runtime:
        runtime.messages_until("READY=1")
        yield runtime


def test_keys_are_added_and_revoked_without_a_restart(runtime):
    """
    The first key also closes a service that was open; the process stays the same one.
    """
    pid = runtime.engine_pid
    assert runtime.status("any") == 200

    runtime.write(1, web=WEB)
    until(lambda: runtime.status("any") == 401, "the service to be closed")
    assert runtime.status(WEB) == 200

    runtime.write(2, ann=ANN)
    until(lambda: runtime.status(WEB) == 401, "the revocation")
    assert runtime.status(ANN) == 200
    assert runtime.engine_pid == pid

    runtime.keys.write_text("{torn")
    until(lambda: "keys.rejected" in runtime.logged(), "the broken file to be named")
    assert runtime.status(ANN) == 200
    assert WEB not in runtime.logged()
    assert ANN not in runtime.logged()


def test_a_runtime_warms_up_where_requests_need_a_key(tmp_path):
    """
    Its own request needs none.
    """
    model = write_model(tmp_path / "model_files", max_position_embeddings=128)
    keys = tmp_path / "keys.json"
    keys.write_text('{"format": 1, "version": 1, "keys": []}')
    with closing(KeyedRuntime(tmp_path / "blue", model, keys)) as runtime:
        runtime.messages_until("READY=1")
        assert runtime.status("any") == 401
