"""
The client against a program that plays `vllm serve`, over a real socket.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ConfigError, EngineError
from runtime.engines.base.protocol import FinishReason, Load
from runtime.engines.base.sampling import SamplingParams
from runtime.engines.vllm import client as vllm
from runtime.engines.vllm.client import VllmClient
from runtime.engines.vllm.process import VllmModel, VllmProcess, vllm_argv, vllm_env
from runtime.engines.vllm.unix_http import request
from runtime.server import process as server

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[5]
FAKE = Path(__file__).with_name("fake_vllm.py")
BEAT_S = 0.02
LOAD = Load("/m", BEAT_S, EngineOptions())
DEADLINE_S = 20.0


async def ticks(limit_s=DEADLINE_S):
    """
    Yield now and then, until *limit_s* is over.
    """
    give_up_s = time.monotonic() + limit_s
    while time.monotonic() < give_up_s:
        yield
        await asyncio.sleep(0.005)


class Vllm(VllmClient):
    """
    A client, the fake behind it, and what it reported.
    """

    def __init__(self, child):
        self.reports = []
        super().__init__(child, self.reports.append)
        self.socket, self.process = child.socket, child.process

    def ask(self, *tokens, max_tokens=4, timeout_s=DEADLINE_S, **options):
        return self.submit(tokens or (10,), SamplingParams(max_tokens, **options), timeout_s)

    async def tell(self, where, **what):
        async with request(self.socket, "POST", f"/fake/{where}", what) as response:
            assert response.status == 200

    async def seen(self):
        async with request(self.socket, "GET", "/fake/seen") as response:
            return json.loads(await response.whole())

    async def until(self, condition, what, limit_s=DEADLINE_S):
        """
        Wait until the fake has seen what makes *condition* true.
        """
        async for _ in ticks(limit_s):
            if condition(seen := await self.seen()):
                return
        pytest.fail(f"waited in vain for {what}: {seen}")

    async def reports_more(self, beats=3):
        """
        Wait for that many reports from now on.
        """
        wanted = len(self.reports) + beats
        async for _ in ticks():
            if len(self.reports) >= wanted:
                return
        pytest.fail(f"waited in vain for {beats} reports: {self.reports[-3:]}")

    async def until_report(self, condition):
        """
        Wait until the last report is such.
        """
        async for _ in ticks():
            if self.last is not None and condition(self.last):
                return
        pytest.fail(f"waited in vain for a report: {self.reports[-3:]}")

    async def is_silent(self):
        """
        Return whether nothing is reported for many beats, after what was under way.
        """
        await asyncio.sleep(BEAT_S * 3)
        before = len(self.reports)
        await asyncio.sleep(BEAT_S * 10)
        return len(self.reports) == before


def model_of(folder, **options):
    return VllmModel(
        model_dir=folder / "model",
        model_name="lab",
        options=EngineOptions(**options),
        runtime_socket=folder / "runtime.sock",
    )


def start(folder, fate="", **config):
    (folder / "model").mkdir()
    (folder / "engine").mkdir()
    socket = folder / "engine/vllm.sock"
    argv = vllm_argv(model_of(folder, **config), FAKE, socket)
    env = vllm_env(os.environ | {"FAKE_VLLM": fate}, threads=1)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "runtime.engines.base.pdeathsig",
            str(os.getpid()),
            sys.executable,
            *argv,
        ],
        cwd=ROOT,
        env=env,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    return VllmProcess(process, socket, "lab")


@contextlib.asynccontextmanager
async def loading(folder, fate="", **config):
    client = Vllm(start(folder, fate, **config))
    try:
        async with asyncio.timeout(60):
            yield client
    finally:
        await client.close()


@pytest.fixture
async def client(tmp_path):
    async with loading(tmp_path) as client:
        assert (await client.load(LOAD)).context_tokens == 100
        yield client


async def test_greedy_and_sampled_requests_say_what_was_asked(client):
    """
    Token ids, lengths and sampling reach vLLM as they are, and a seed only where there is one.
    """
    _, greedy = client.ask(3, 4, max_tokens=2)
    assert await greedy.end() is FinishReason.LENGTH
    _, sampled = client.ask(5, max_tokens=1, temperature=0.7, top_p=0.9, seed=11)
    assert await sampled.end() is FinishReason.LENGTH

    always = {"model": "lab", "stream": True, "return_token_ids": True}
    one, two = (await client.seen())["bodies"]
    assert one == always | {"prompt": [3, 4], "max_tokens": 2, "temperature": 0.0, "top_p": 1.0}
    wanted = {"prompt": [5], "max_tokens": 1, "temperature": 0.7, "top_p": 0.9, "seed": 11}
    assert two == always | wanted


async def test_tokens_come_as_they_are_made_and_in_order(client):
    """
    The first tokens are there while vLLM still works on the rest.
    """
    await client.tell("next", hold_after=2)
    _, answer = client.ask(10, max_tokens=4)
    first = []
    while len(first) < 2:
        first += await answer.more(len(first))
    assert first == [11, 12]
    assert answer.finish_reason is None
    assert client.in_flight == 1

    await client.tell("now", release=True)
    assert await answer.end() is FinishReason.LENGTH
    assert answer.tokens == [11, 12, 13, 14]
    assert client.in_flight == 0


async def test_requests_run_side_by_side(client):
    """
    Each of many gets its own tokens.
    """
    asked = {first: client.ask(first, max_tokens=5)[1] for first in range(10, 50)}
    for first, answer in asked.items():
        assert await answer.end() is FinishReason.LENGTH
        assert answer.tokens == list(range(first + 1, first + 6))


async def test_an_end_token_ends_an_answer_and_is_no_part_of_it(client):
    """
    What vLLM gives along with finish_reason stop is not passed on.
    """
    await client.tell("next", tokens=[21, 22], reason="stop")
    _, answer = client.ask()
    assert await answer.end() is FinishReason.STOP
    assert answer.tokens == [21, 22]


def is_free(seen):
    return (seen["running"], seen["aborted"]) == (0, 1)


async def test_a_late_answer_is_hung_up_on(client):
    """
    Its deadline ends a request here and frees it there.
    """
    await client.tell("next", hold_after=1)
    _, answer = client.ask(timeout_s=0.8)
    assert await answer.end() is FinishReason.EXPIRED
    assert answer.detail == "1 of 4 tokens"
    await client.until(is_free, "vLLM to be hung up on")


async def test_a_cancelled_request_is_freed_within_a_beat(client):
    """
    vLLM sees the end of the connection at once, and what it makes later reaches nobody.
    """
    await client.tell("next", hold_after=1)
    id, answer = client.ask()
    await answer.more(0)
    assert (await client.seen())["running"] == 1  # negative control: it was there

    client.cancel(id)
    client.cancel(id)
    await client.until(is_free, "vLLM to be hung up on", limit_s=server.BEAT_S)
    assert client.in_flight == 0
    assert answer.finish_reason is None  # nobody waits for it: who cancels says what it was


async def test_cancelling_what_has_ended_is_nothing(client):
    """
    An answer that came whole is no aborted one.
    """
    id, answer = client.ask()
    await answer.end()
    client.cancel(id)
    await client.reports_more()
    assert (await client.seen())["aborted"] == 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"status": 400}, "vLLM answered 400: status 400"),
        ({"status": 500, "text": "Internal Server Error"}, "500: Internal Server Error"),
        ({"reason": "abort"}, "finish_reason 'abort'"),
        ({"text": "data: {not json\n\n"}, "can't be read"),
        ({"text": 'data: {"choices": [{"text": "no ids"}]}\n\n'}, "can't be read: KeyError"),
        ({"text": 'data: {"error": {"message": "it broke"}}\n\n'}, "vLLM failed: it broke"),
        ({"text": "data: [DONE]\n\n"}, "has no end"),
        ({"raw": "who is there?\r\n\r\n"}, "vLLM closed the connection: illegal status line"),
        ({"raw": ""}, "vLLM closed the connection"),
        ({"hang_up_after": 2}, "vLLM closed the connection"),
        ({"reason": None}, "has no end"),
    ],
)
async def test_whatever_is_no_answer_is_an_error_that_says_so(client, script, words):
    """
    Refusal, garbled, cut or unknown: the request ends, with what vLLM said; the next one is well.
    """
    await client.tell("next", **script)
    _, answer = client.ask()
    assert await answer.end() is FinishReason.ERROR
    assert words in answer.detail
    _, well = client.ask()
    assert await well.end() is FinishReason.LENGTH
    assert client.in_flight == 0


async def test_the_fake_is_strict(client):
    """
    Negative control: a request that vLLM would not understand is refused, not answered.
    """
    _, answer = client.ask(max_tokens=1000)
    assert await answer.end() is FinishReason.ERROR
    assert "cannot be greater than 100" in answer.detail
    _, answer = client.ask(top_p=1)  # a whole number where a fraction is meant
    assert await answer.end() is FinishReason.ERROR
    assert "top_p" in answer.detail


async def test_reports_carry_tokens_ends_and_the_gauges(client):
    """
    Each token and end is reported once; running requests are vLLM's own count.
    """
    await client.tell("next", hold_after=2)
    id, answer = client.ask(10, max_tokens=3)
    while len(answer.tokens) < 2:
        await answer.more(len(answer.tokens))
    await client.until_report(lambda report: report.running == 1)
    await client.tell("next", hold_after=0)
    waits, _ = client.ask()
    await client.until_report(lambda report: report.running == 2)
    client.cancel(waits)
    await client.until_report(lambda report: report.running == 1)
    await client.tell("now", release=True)
    await answer.end()
    await client.reports_more()

    assert [token for r in client.reports for token in r.tokens] == [(id, t) for t in (11, 12, 13)]
    assert [end for report in client.reports for end in report.ended] == [
        (id, FinishReason.LENGTH, "")
    ]
    assert client.last is client.reports[-1]
    assert (client.last.steps, client.last.running, client.last.is_beat) == (3, 0, True)
    # Where nothing was computed there was no batch, however many are running.
    assert all(report.batch == 0 for report in client.reports if report.running == 2)
    assert {report.batch for report in client.reports} == {0, 1}


@pytest.mark.parametrize("health", [0, 500], ids=["hangs", "fails"])
async def test_without_health_nothing_is_reported(client, monkeypatch, health):
    """
    A vLLM that does not answer, or not well, feeds no watchdog.
    """
    monkeypatch.setattr(vllm, "LOOK_S", 0.05)
    await client.reports_more()  # negative control: an idle one beats
    await client.tell("now", health=health)
    assert await client.is_silent()
    await client.tell("now", health=200)
    await client.reports_more()


async def test_a_vllm_whose_core_died_is_ended_at_once(client):
    """
    It says so with a 503 and would leave some seconds later; until then it would fail everybody.
    """
    await client.tell("next", hold_after=1)
    _, waiting = client.ask()
    await waiting.more(0)
    await client.tell("now", health=503)
    assert await waiting.end() is FinishReason.DIED
    assert client.died.done()


async def test_a_stopped_process_reports_nothing(client, monkeypatch):
    """
    As above, with the whole process stopped.
    """
    monkeypatch.setattr(vllm, "LOOK_S", 0.05)
    client.process.send_signal(signal.SIGSTOP)
    assert await client.is_silent()
    client.process.send_signal(signal.SIGCONT)
    await client.reports_more()


async def test_an_engine_core_that_hangs_reports_nothing(client, monkeypatch):
    """
    vLLM's /health is 200 all the while; what gives it away is that nothing moves.
    """
    monkeypatch.setattr(vllm, "LOOK_S", 0.05)
    await client.tell("now", is_hanging=True)
    id, answer = client.ask()
    assert await client.is_silent()

    client.cancel(id)  # it still owes a sign of life
    assert await client.is_silent()

    await client.tell("now")
    await client.reports_more()
    assert answer.tokens == []


async def test_a_request_that_left_before_its_turn_silences_nobody(client):
    """
    Nothing moves for it, so vLLM is asked for one token more; that one is nobody's.
    """
    await client.reports_more()
    await client.tell("next", hold_after=0)
    id, _ = client.ask(10)
    await client.until(lambda seen: seen["running"] == 1, "the request to arrive")
    client.cancel(id)
    await client.reports_more()

    await client.until(lambda seen: len(seen["bodies"]) == 2, "one more request")
    assert (await client.seen())["bodies"][1]["max_tokens"] == 1
    assert [report.tokens for report in client.reports if report.tokens] == []
    assert client.in_flight == 0


async def test_a_vllm_that_dies_answers_everybody(client):
    """
    Whoever waits, and whoever comes later, is told that it died and how.
    """
    await client.tell("next", hold_after=1)
    _, waiting = client.ask()
    await waiting.more(0)
    await client.tell("next", die_after=2)
    _, last = client.ask()

    assert await last.end() is FinishReason.DIED
    assert await waiting.end() is FinishReason.DIED
    assert waiting.detail == client.exit_reason == "exit status 3"
    assert client.died.done()
    assert client.in_flight == 0
    _, late = client.ask()
    assert await late.end() is FinishReason.DIED
    assert await client.is_silent()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid):
    return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_a_connection_that_ends_before_its_process_is_a_death(client):
    """
    Who is cut off hears of the death that is behind it, and not of the connection.
    """
    await client.tell("next", hang_up_after=1, then_dies=True)
    _, answer = client.ask()
    assert await answer.end() is FinishReason.DIED


async def test_what_vllm_started_dies_with_it(tmp_path):
    """
    Its engine core is a process of its own, and would keep the GPU.
    """
    async with loading(tmp_path, fate="has a core") as client:
        await client.load(LOAD)
        (core,) = children_of(client.process.pid)
        assert is_alive(core)
        client.process.kill()
        await client.died
        async for _ in ticks():
            if not is_alive(core):
                return
        pytest.fail("the core lives on")


async def test_draining_waits_for_the_last_and_no_longer_than_it_may(client):
    """
    It returns how many are left.
    """
    assert await client.drain(5.0) == 0
    await client.tell("next", hold_after=1)
    _, answer = client.ask()
    assert await client.drain(0.05) == 1
    draining = asyncio.create_task(client.drain(DEADLINE_S))
    await client.tell("now", release=True)
    assert await draining == 0
    assert answer.finish_reason is FinishReason.LENGTH


async def test_what_is_abandoned_is_answered(client):
    """
    After the drain's time is up each request that is left gets its end, and vLLM is hung up on.
    """
    await client.tell("next", hold_after=1)
    _, left = client.ask()
    await left.more(0)
    assert client.abandon() == 1
    assert await left.end() is FinishReason.ABANDONED
    assert client.in_flight == 0
    await client.until(lambda seen: seen["aborted"] == 1, "vLLM to be hung up on")


async def test_it_waits_until_vllm_has_loaded(tmp_path):
    """
    A socket that nobody listens on yet is no error.
    """
    child = start(tmp_path)
    child.process.send_signal(signal.SIGSTOP)
    client = Vllm(child)
    loading = asyncio.create_task(client.load(LOAD))
    await asyncio.sleep(0.1)
    assert not loading.done()
    child.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(DEADLINE_S):
        assert (await loading).context_tokens == 100
    assert await client.close() == 0
    assert not child.socket.parent.exists()


async def test_a_vllm_that_can_not_load_is_an_engine_error(tmp_path):
    """
    A load does not wait for what can't come.
    """
    async with loading(tmp_path, fate="dies") as client:
        with pytest.raises(EngineError) as caught:
            await client.load(LOAD)
        assert "exit status 1" in caught.value.why


async def test_arguments_that_vllm_refuses_are_a_config_error(tmp_path):
    """
    A restart would not help.
    """
    async with loading(tmp_path, vllm_args=("--gpu-memory", "0.5")) as client:
        with pytest.raises(ConfigError, match="vllm_args"):
            await client.load(LOAD)


async def test_another_model_is_refused_and_the_first_stays(client):
    """
    vLLM serves one model for as long as it lives.
    """
    for change in (client.swap("/other"), client.load(LOAD)):
        with pytest.raises(EngineError) as caught:
            await change
        assert "inv release" in caught.value.fix
    _, answer = client.ask()
    assert await answer.end() is FinishReason.LENGTH


async def test_a_vllm_that_does_not_leave_is_killed(tmp_path, monkeypatch):
    """
    SIGTERM first, and SIGKILL for who ignores it.
    """
    monkeypatch.setattr(vllm, "STOP_S", 0.1)
    client = Vllm(start(tmp_path, fate="ignores SIGTERM"))
    await client.load(LOAD)
    assert await client.close() == -signal.SIGKILL
