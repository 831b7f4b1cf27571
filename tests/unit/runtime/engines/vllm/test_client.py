"""
The client with the fake `vllm serve`, over a real socket.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ConfigError, EngineError
from runtime.engines.base.protocol import FinishReason, Load, Share
from runtime.engines.base.sampling import SamplingParams, TokenLogprobs
from runtime.engines.vllm import client as vllm
from runtime.engines.vllm.client import VllmClient
from runtime.engines.vllm.process import VllmModel, VllmProcess, vllm_argv, vllm_env
from runtime.engines.vllm.unix_http import request

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[5]
FAKE = Path(__file__).with_name("fake_vllm.py")
BEAT_S = 0.02
LOAD = Load("/m", BEAT_S, EngineOptions())
DEADLINE_S = 60.0


async def ticks():
    """
    Yield at short intervals, until DEADLINE_S is over.
    """
    give_up_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < give_up_s:
        yield
        await asyncio.sleep(0.005)


class Vllm(VllmClient):
    """
    A client, its fake vLLM, and the reports.
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

    async def recorded(self):
        async with request(self.socket, "GET", "/fake/seen") as response:
            return json.loads(await response.whole())

    async def until(self, condition, what):
        """
        Wait until the fake's record satisfies *condition*.
        """
        async for _ in ticks():
            if condition(recorded := await self.recorded()):
                return
        pytest.fail(f"timed out waiting for {what}: {recorded}")

    async def reports_more(self, beats=3):
        """
        Wait for that many further reports.
        """
        wanted = len(self.reports) + beats
        async for _ in ticks():
            if len(self.reports) >= wanted:
                return
        pytest.fail(f"timed out waiting for {beats} reports: {self.reports[-3:]}")

    async def until_report(self, condition):
        """
        Wait until the last report satisfies the condition.
        """
        async for _ in ticks():
            if self.last is not None and condition(self.last):
                return
        pytest.fail(f"timed out waiting for a report: {self.reports[-3:]}")

    async def is_silent(self):
        """
        Return whether no report arrives for many heartbeats, after two in progress at most.
        """
        for _ in range(3):
            before = len(self.reports)
            await asyncio.sleep(BEAT_S * 10)
            if len(self.reports) == before:
                return True
            if len(self.reports) > before + 1:
                return False
        return False


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
        async with asyncio.timeout(300):
            yield client
    finally:
        await client.close()


@pytest.fixture
async def client(tmp_path):
    async with loading(tmp_path) as client:
        assert (await client.load(LOAD)).context_tokens == 100
        yield client


@pytest.mark.parametrize("policy", ["priority", "fcfs"])
async def test_priorities_reach_a_vllm_that_schedules_by_them_and_no_other(tmp_path, policy):
    """
    One number for both: keys first, then a client's own; where there are keys, no number of a
    client puts it ahead of its key's level.
    """
    options = {"vllm_args": (f"--scheduling-policy={policy}",)}
    async with loading(tmp_path, **options) as client:
        await client.load(replace(LOAD, options=EngineOptions(**options)))
        assert client.has_priorities == (policy == "priority")
        order = [(Share("a", priority=1), 100), (Share("b"), -100), (Share("b"), 0)]
        order += [(Share("b"), 1), (Share("c", priority=9), -100)]
        order.sort(key=lambda pair: (pair[0].level(pair[1]), pair[1]))
        for share, priority in order:
            _, stream = client.submit(
                (10,), SamplingParams(1), DEADLINE_S, share=share, priority=priority
            )
            assert await stream.end() is FinishReason.LENGTH, stream.detail
        sent = [body.get("priority") for body in (await client.recorded())["bodies"]]
    assert sent == (sorted(sent) if policy == "priority" else [None] * len(order))
    assert len(set(sent)) == (4 if policy == "priority" else 1)  # -100 and 0 of one key are one


async def test_sampling_parameters_reach_vllm_unchanged(client):
    """
    Token ids, lengths and sampling, and a seed only if there is one.
    """
    _, greedy = client.ask(3, 4, max_tokens=2)
    assert await greedy.end() is FinishReason.LENGTH
    _, sampled = client.ask(5, max_tokens=1, temperature=0.7, top_p=0.9, seed=11)
    assert await sampled.end() is FinishReason.LENGTH

    always = {"model": "lab", "stream": True, "return_token_ids": True}
    one, two = (await client.recorded())["bodies"]
    assert one == always | {"prompt": [3, 4], "max_tokens": 2, "temperature": 0.0, "top_p": 1.0}
    wanted = {"prompt": [5], "max_tokens": 1, "temperature": 0.7, "top_p": 0.9, "seed": 11}
    assert two == always | wanted


async def test_tokens_arrive_in_order_as_they_are_generated(client):
    """
    The first tokens arrive while vLLM still generates.
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


async def test_requests_run_concurrently(client):
    """
    Each of many gets its own tokens.
    """
    asked = {first: client.ask(first, max_tokens=5)[1] for first in range(10, 50)}
    for first, answer in asked.items():
        assert await answer.end() is FinishReason.LENGTH
        assert answer.tokens == list(range(first + 1, first + 6))


async def test_a_stop_token_is_not_part_of_the_answer(client):
    """
    vLLM sends it along with finish_reason stop; it is dropped.
    """
    await client.tell("next", tokens=[21, 22], reason="stop")
    _, answer = client.ask()
    assert await answer.end() is FinishReason.STOP
    assert answer.tokens == [21, 22]


def is_free(recorded):
    return (recorded["running"], recorded["aborted"]) == (0, 1)


async def test_a_deadline_closes_the_connection_to_vllm(client):
    """
    It ends the request here and frees it there.
    """
    await client.tell("next", hold_after=1)
    _, answer = client.ask(timeout_s=3.0)
    assert await answer.end() is FinishReason.EXPIRED
    assert answer.detail == "1 of 4 tokens"
    await client.until(is_free, "vLLM to be hung up on")


async def test_a_cancel_closes_the_connection_to_vllm(client):
    """
    vLLM notices at once, and its later tokens are discarded.
    """
    await client.tell("next", hold_after=1)
    id, answer = client.ask(timeout_s=600.0)  # no deadline frees it
    await answer.more(0)
    assert (await client.recorded())["running"] == 1  # negative control: it was there

    client.cancel(id)
    client.cancel(id)
    await client.until(is_free, "vLLM to be hung up on")
    assert client.in_flight == 0
    assert answer.finish_reason is None  # nobody waits for it: who cancels says what it was


async def test_cancelling_an_ended_request_has_no_effect(client):
    """
    A complete answer is not counted as aborted.
    """
    id, answer = client.ask()
    await answer.end()
    client.cancel(id)
    await client.reports_more()
    assert (await client.recorded())["aborted"] == 0


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
async def test_an_invalid_answer_of_vllm_fails_its_request(client, script, words):
    """
    Refused, garbled, cut or unknown: the error has vLLM's message, and the next request works.
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
    Negative control: the fake refuses a request that vLLM would not understand.
    """
    _, answer = client.ask(max_tokens=1000)
    assert await answer.end() is FinishReason.ERROR
    assert "cannot be greater than 100" in answer.detail
    _, answer = client.ask(top_p=1)  # a whole number where a fraction is meant
    assert await answer.end() is FinishReason.ERROR
    assert "top_p" in answer.detail


async def test_reports_have_tokens_ends_and_gauges(client):
    """
    Each token and end is reported once; the number of running requests is vLLM's own.
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
async def test_an_unhealthy_vllm_sends_no_heartbeat(client, monkeypatch, health):
    """
    A vLLM that does not answer, or not with 200, feeds no watchdog.
    """
    monkeypatch.setattr(vllm, "LOOK_S", 0.05)
    await client.reports_more()  # negative control: an idle one beats
    await client.tell("now", health=health)
    assert await client.is_silent()
    await client.tell("now", health=200)
    await client.reports_more()


async def test_a_vllm_whose_core_died_is_ended_at_once(client):
    """
    It answers 503, would exit some seconds later, and would fail all requests until then.
    """
    await client.tell("next", hold_after=1)
    _, waiting = client.ask()
    await waiting.more(0)
    await client.tell("now", health=503)
    assert await waiting.end() is FinishReason.DIED
    assert client.died.done()


async def test_a_stopped_vllm_sends_no_heartbeat(client, monkeypatch):
    """
    The whole process is stopped.
    """
    monkeypatch.setattr(vllm, "LOOK_S", 0.05)
    client.process.send_signal(signal.SIGSTOP)
    assert await client.is_silent()
    client.process.send_signal(signal.SIGCONT)
    await client.reports_more()


async def test_a_hanging_engine_core_sends_no_heartbeat(client, monkeypatch):
    """
    vLLM's /health stays 200; only the missing progress shows the hang.
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


async def test_a_request_cancelled_in_the_queue_does_not_stop_heartbeats(client, monkeypatch):
    """
    There is no progress to see, so one extra token is requested from vLLM and discarded.
    """
    await client.reports_more()
    waits, may_look, look = asyncio.Event(), asyncio.Event(), client._look

    async def look_later():
        waits.set()
        await may_look.wait()
        return await look()

    # A look between the two would see the request come and go, which is progress.
    monkeypatch.setattr(client, "_look", look_later)
    await waits.wait()
    await client.tell("next", hold_after=0)
    id, _ = client.ask(10)
    await client.until(lambda recorded: recorded["running"] == 1, "the request to arrive")
    client.cancel(id)
    await client.until(is_free, "vLLM to be hung up on")
    may_look.set()
    await client.reports_more()

    await client.until(lambda recorded: len(recorded["bodies"]) == 2, "one more request")
    assert (await client.recorded())["bodies"][1]["max_tokens"] == 1
    assert [report.tokens for report in client.reports if report.tokens] == []
    assert client.in_flight == 0


async def test_a_dead_vllm_fails_all_requests(client):
    """
    Current and later requests get an error that says how it died.
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


async def test_a_connection_lost_by_a_death_reports_the_death(client):
    """
    The error names the death of the process, not the lost connection.
    """
    await client.tell("next", hang_up_after=1, then_dies=True)
    _, answer = client.ask()
    assert await answer.end() is FinishReason.DIED


async def test_child_processes_of_vllm_end_with_it(tmp_path):
    """
    The engine core is a process of its own, and would keep the GPU.
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


async def test_drain_waits_for_the_last_request_up_to_its_limit(client):
    """
    It returns the number of requests in flight.
    """
    assert await client.drain(5.0) == 0
    await client.tell("next", hold_after=1)
    _, answer = client.ask()
    assert await client.drain(0.05) == 1
    draining = asyncio.create_task(client.drain(DEADLINE_S))
    await client.tell("now", release=True)
    assert await draining == 0
    assert answer.finish_reason is FinishReason.LENGTH


async def test_abandoned_requests_are_answered(client):
    """
    Each request that outlasts the drain gets an end, and its connection to vLLM closes.
    """
    await client.tell("next", hold_after=1)
    _, left = client.ask()
    await left.more(0)
    assert client.abandon() == 1
    assert await left.end() is FinishReason.ABANDONED
    assert client.in_flight == 0
    await client.until(lambda recorded: recorded["aborted"] == 1, "vLLM to be hung up on")


async def test_load_waits_until_vllm_listens(tmp_path):
    """
    A socket without a listener is not an error yet.
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
    The load fails at once.
    """
    async with loading(tmp_path, fate="dies") as client:
        with pytest.raises(EngineError) as caught:
            await client.load(LOAD)
        assert "exit status 1" in caught.value.why


async def test_arguments_that_vllm_refuses_are_a_config_error(tmp_path):
    """
    A restart would not help.
    """
    async with loading(tmp_path, vllm_args=("--no-such-argument",)) as client:
        with pytest.raises(ConfigError, match="vllm_args"):
            await client.load(LOAD)


async def test_another_model_is_refused_and_the_first_stays(client):
    """
    A vLLM process serves one model.
    """
    for change in (client.swap("/other"), client.load(LOAD)):
        with pytest.raises(EngineError) as caught:
            await change
        assert "inv release" in caught.value.fix
    _, answer = client.ask()
    assert await answer.end() is FinishReason.LENGTH


async def test_a_vllm_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    """
    SIGTERM first, then SIGKILL.
    """
    monkeypatch.setattr(vllm, "STOP_S", 0.1)
    client = Vllm(start(tmp_path, fate="ignores SIGTERM"))
    await client.load(LOAD)
    assert await client.close() == -signal.SIGKILL


async def test_log_probabilities_come_with_their_tokens(client):
    """
    As many of the likeliest as were asked for; a token without any is an error.
    """
    choice = {"finish_reason": "length", "token_ids": [5], "logprobs": None}
    scored = choice | {
        "logprobs": {
            "token_logprobs": [-2.0],
            "top_logprobs": [{"token_id:5": -2, "token_id:8": -1}],
        }
    }
    for sent, reason in ((scored, FinishReason.LENGTH), (choice, FinishReason.ERROR)):
        await client.tell("next", text=f"data: {json.dumps({'choices': [sent]})}\n\n")
        _, stream = client.ask(max_tokens=1, logprobs=1)
        assert await stream.end() == reason
        expected = [TokenLogprobs(-2.0, ((8, -1.0),))] if reason.is_good else []
        assert stream.logprobs == expected
