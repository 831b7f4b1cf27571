"""
A fake `vllm serve`, stricter than the real one: it refuses everything that it does not know.
Standard library only, so that it starts at once.

It answers a request by counting upwards from the last token of its prompt.  POST /fake/next sets
the behaviour of the next request, POST /fake/now changes the program itself, and GET /fake/seen
returns what it recorded.  FAKE_VLLM in the environment makes its start fail.  Its events have the
shape of those in recorded/.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

BODY = {
    "model": str,
    "prompt": list,
    "max_tokens": int,
    "temperature": float,
    "top_p": float,
    "stream": bool,
    "return_token_ids": bool,
}
OPTIONAL = {
    "seed": int,
    "logprobs": int,
    "return_tokens_as_token_ids": bool,
    "priority": int,
    "ignore_eos": bool,
}
END = 2  # the end token of the model that it plays
CONTEXT = 100


class Fake:
    def __init__(self, args):
        self.args = args
        self.bodies, self.scripts = [], deque()
        self.running = self.aborted = self.steps = 0
        self.health = 200
        self.released = asyncio.Event()
        self.turning = asyncio.Event()  # the engine core: else no token is made, no number changes
        self.turning.set()

    async def serve(self, listener):
        await asyncio.start_unix_server(self.on_connection, sock=listener)
        await asyncio.Event().wait()

    async def on_connection(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await self.answer(f"{method} {target}", body, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, what, body, reader, writer):
        match what:
            case "GET /health":
                if self.health == 0:
                    await asyncio.Event().wait()
                reply(writer, self.health, "")
            case "GET /metrics":
                reply(writer, 200, self.metrics())
            case "GET /v1/models":
                model = {"id": self.args.served_model_name, "max_model_len": CONTEXT}
                reply(writer, 200, json.dumps({"object": "list", "data": [model]}))
            case "POST /v1/completions":
                await self.complete(json.loads(body), reader, writer)
            case "POST /fake/next":
                self.scripts.append(json.loads(body))
                reply(writer, 200, "")
            case "POST /fake/now":
                self.change(**json.loads(body))
                reply(writer, 200, "")
            case "GET /fake/seen":
                recorded = {"argv": sys.argv[1:], "env": dict(os.environ), "bodies": self.bodies}
                counts = {"running": self.running, "aborted": self.aborted}
                reply(writer, 200, json.dumps(recorded | counts))
            case _:
                refuse(writer, 404, f"{what} is not played")
        await writer.drain()

    def change(self, *, health=200, is_hanging=False, release=False):
        self.health = health
        if is_hanging:
            self.turning.clear()
        else:
            self.turning.set()
        if release:
            self.released.set()

    def metrics(self):
        labels = f'{{engine="0",model_name="{self.args.served_model_name}"}}'
        return (
            f"# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{labels} {float(self.running)}\n"
            f"vllm:num_requests_waiting{labels} 0.0\n"
            f"vllm:kv_cache_usage_perc{labels} 0.0\n"
            f"vllm:iteration_tokens_total_count{labels} {float(self.steps)}\n"
        )

    async def complete(self, body, reader, writer):
        self.bodies.append(body)
        if wrong := complaint(body, self.args):
            refuse(writer, *wrong)
            return
        script = self.scripts.popleft() if self.scripts else {}
        ended = asyncio.Event()
        leaving = asyncio.ensure_future(reader.read(1))  # it sends no more: this is its end
        streaming = asyncio.ensure_future(self.stream(body, writer, ended, **script))
        is_counted = self.turning.is_set()
        self.running += is_counted
        await asyncio.wait((leaving, streaming), return_when=asyncio.FIRST_COMPLETED)
        self.running -= is_counted
        leaving.cancel()
        if streaming.done():
            streaming.result()
        else:
            streaming.cancel()
            self.aborted += not ended.is_set()

    async def stream(
        self,
        body,
        writer,
        ended,
        *,
        tokens=None,
        reason="length",
        status=200,
        text=None,
        raw=None,
        hold_after=None,
        die_after=None,
        hang_up_after=None,
        then_dies=False,
    ):
        """
        Args:
            text: Sent as it is, in place of events.
            raw: Sent as it is, in place of HTTP.
            hold_after: Wait behind this many tokens, until released or left.
            die_after: End the program behind this many tokens.
            hang_up_after: End the connection in the middle of the body...
            then_dies: ...and the program a moment later.
        """
        if raw is not None:
            writer.write(raw.encode())
            return
        if status != 200:
            reply(writer, status, text or json.dumps({"error": {"message": f"status {status}"}}))
            return
        begin(writer)
        if text is not None:
            chunk(writer, text)
            writer.write(b"0\r\n\r\n")
            return
        if tokens is None:
            last = body["prompt"][-1]
            tokens = list(range(last + 1, last + 1 + body["max_tokens"]))
        if reason == "stop":
            tokens = [*tokens, END]
        for index, token in enumerate(tokens):
            if index == hold_after:
                await self.released.wait()
            if index == die_after:
                os._exit(3)
            if index == hang_up_after:
                writer.close()
                if then_dies:
                    asyncio.get_running_loop().call_later(0.05, os._exit, 3)
                return
            await self.turning.wait()
            self.steps += 1
            if is_last := index == len(tokens) - 1:
                ended.set()
            chunk(writer, event(self.args, [token], reason if is_last else None))
            await writer.drain()
            await asyncio.sleep(0)
        chunk(writer, "data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")


def complaint(body, args):
    for name, kind in (BODY | OPTIONAL).items():
        if name not in body and name in OPTIONAL:
            continue
        if type(body.get(name)) is not kind:
            return 400, f"{name}: {body.get(name)!r} is no {kind.__name__}"
    if unknown := body.keys() - (BODY | OPTIONAL).keys():
        return 400, f"unknown: {sorted(unknown)}"
    if body.get("priority") and args.scheduling_policy != "priority":
        return 400, "Got priority but priority scheduling is not enabled."
    if body["model"] != args.served_model_name:
        return 404, f"The model `{body['model']}` does not exist."
    if not body["stream"] or not body["return_token_ids"]:
        return 400, "only streams of token ids are played"
    if len(body["prompt"]) + body["max_tokens"] > CONTEXT:
        return 400, f"max_tokens={body['max_tokens']} cannot be greater than {CONTEXT}"
    return None


def event(args, tokens, reason):
    choice = {"index": 0, "text": "?", "logprobs": None, "finish_reason": reason}
    choice |= {"stop_reason": None, "prompt_token_ids": None, "token_ids": tokens}
    document = {"id": "cmpl-1", "object": "text_completion", "model": args.served_model_name}
    return f"data: {json.dumps(document | {'choices': [choice]})}\n\n"


def begin(writer):
    lines = ("HTTP/1.1 200 OK", "connection: close", "content-type: text/event-stream")
    writer.write("\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode())


def chunk(writer, text):
    writer.write(f"{len(text.encode()):x}\r\n".encode() + text.encode() + b"\r\n")


def reply(writer, status, text):
    length = f"content-length: {len(text.encode())}"
    lines = (f"HTTP/1.1 {status} Whatever", "connection: close", length)
    writer.write("\r\n".join([*lines, "", text]).encode())


def refuse(writer, status, message):
    reply(writer, status, json.dumps({"error": {"message": message, "code": status}}))


def main():
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--uds", required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], required=True)
    parser.add_argument("--kv-cache-dtype", choices=["auto", "fp8"], required=True)
    parser.add_argument("--gpu-memory-utilization", type=float, required=True)
    parser.add_argument("--tensor-parallel-size", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, required=True)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--generation-config", choices=["vllm"], required=True)
    parser.add_argument("--disable-uvicorn-access-log", action="store_true", required=True)
    parser.add_argument("--stream-interval", type=int)
    parser.add_argument("--scheduling-policy", choices=["fcfs", "priority"], default="fcfs")
    args = parser.parse_args()
    if not args.model.is_dir():
        raise SystemExit(f"no model in {args.model}")
    fate = os.environ.get("FAKE_VLLM")
    listener = socket.socket(socket.AF_UNIX)  # bound at once, and listening once it has loaded
    listener.bind(args.uds)
    if fate == "dies":
        raise SystemExit("out of memory, say")
    if fate == "has a core":
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    if fate == "ignores SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(Fake(args).serve(listener))


if __name__ == "__main__":
    main()
