"""
Measures a started runtime beside the worst requests: `python -m` this module.

While bodies come, another process asks for /readyz over a connection of its own and looks at the
memory of the API process.  Each line has the longest answer of /readyz and the most memory over
idle: the smallest of three runs, because other work on the machine only adds to them.  Compare
with the line of `nothing`, which is the machine's own.  Names of cases may be given as arguments.
"""

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[4]
SIZE = 8_000_000  # bytes, just under the largest body
RUNS = 3
START_S = 600.0
CONTEXT = 131_072
PROBE_S = 0.002  # between two answers of /readyz
# What a template may do with what a client sends.
TEMPLATE = (
    "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    "{% for a in range(loops | default(0)) %}{% for b in range(loops) %}x{% endfor %}{% endfor %}"
)
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("runtime", timeout=START_S)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def prompt(piece):
    return COMPLETE, f'{{"max_tokens": 1, "prompt": "{piece * (SIZE // len(piece.encode()))}"}}'


def chat(content="hi", **fields):
    messages = [{"role": "user", "content": content}]
    return CHAT, json.dumps({"messages": messages, "max_tokens": 1} | fields)


def nested(levels):
    return CHAT, f'{{"max_tokens": 1, "messages": {"[" * levels}{"]" * levels}}}'


def deep_schema(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}


def wide_schema(names):
    parts = {f"name{n}": {"enum": [f"value{n}-{m}" for m in range(20)]} for n in range(names)}
    schema = {"type": "object", "properties": parts, "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "wide", "schema": schema}}


# Name: number of connections, and what each sends.
CASES = {
    "nothing": (0, chat()),
    "escaped quotes": (1, prompt('\\"')),
    "escaped backslashes": (1, prompt("\\\\")),
    "escaped newlines": (1, prompt("a\\n")),
    "fewer escaped newlines": (1, prompt("a\\n" * 100 + "a" * 210)),  # as many as a body may have
    "CJK": (1, prompt("船")),
    "escaped CJK": (1, prompt("\\u8239")),
    "one word": (1, prompt("a")),
    "20,000 levels": (1, nested(20_000)),
    "8,000 levels": (1, nested(8_000)),
    "2,048 messages": (
        1,
        (CHAT, json.dumps({"messages": [{"role": "user", "content": "x" * 3500}] * 2048})),
    ),
    "one message": (1, chat("x y " * (SIZE // 4))),
    "150,000 token ids": (1, (COMPLETE, json.dumps({"prompt": [7] * 150_000}))),
    "128 prompts": (1, (COMPLETE, json.dumps({"prompt": ["x y " * 15_000] * 128}))),
    "template of 10^8 steps": (1, chat(chat_template_kwargs={"loops": 10_000})),
    "regex that explodes": (
        1,
        chat(structured_outputs={"regex": "(" * 10 + "a{1,999}" + "){1,99}" * 10}),
    ),
    "schema of 60 levels": (1, chat(response_format=deep_schema(60))),
    "schema of 60,000 characters": (1, chat(response_format=wide_schema(150))),
    "8 x escaped quotes": (8, prompt('\\"')),
    "8 x CJK": (8, prompt("船")),
    "16 x template": (16, chat(chat_template_kwargs={"loops": 10_000})),
    "16 x regex": (16, chat(structured_outputs={"regex": "(" * 10 + "a{1,999}" + "){1,99}" * 10})),
    "16 x 8,000 levels": (16, nested(8_000)),
}


def probe(path, pid):
    """
    Ask for /readyz until the standard input ends; print the longest answer in s, the number of
    answers, and the most memory in MB.
    """
    connection = UnixConnection(path)
    longest_s, count, most_mb = 0.0, 0, 0.0
    print("asking", flush=True)
    while not select.select([sys.stdin], [], [], PROBE_S)[0]:
        before_s = time.perf_counter()
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        longest_s = max(longest_s, time.perf_counter() - before_s)
        count += 1
        most_mb = max(most_mb, memory_mb(pid))
    print(json.dumps([longest_s, count, most_mb]), flush=True)


def memory_mb(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1000


def send(path, route, body, statuses):
    connection = UnixConnection(path)
    try:
        connection.request("POST", route, body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
    except (BrokenPipeError, ConnectionResetError):
        statuses.append("closed")  # refused by its length, before it was read
    finally:
        connection.close()


def measure(path, pid, connections, route, body):
    """
    Return the longest answer in s, the number of answers, the most memory in MB, and the statuses.
    """
    argv = [sys.executable, __file__, "probe", path, str(pid)]
    statuses = []
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as prober:
        assert prober.stdout.readline() == "asking\n"
        args = path, route, body, statuses
        threads = [threading.Thread(target=send, args=args) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(1.0 if connections else 3.0)
        output, _ = prober.communicate("stop")
    return *json.loads(output), statuses


def make_tokenizer():
    """
    Return a tokenizer with tokens of many bytes.
    """
    # Imported here: the process that asks starts fast.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(ROOT / "docs/reference/runtime.md")], trainer)
    return tokenizer


def write_release(folder):
    """
    Write a release with a small model of a long context.
    """
    from tests.unit.runtime.builders import write_model  # with torch

    tokenizer = make_tokenizer()
    model = write_model(
        folder / "model",
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=CONTEXT,
    )
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "config.yml").write_text(
        "version: v1\nmodel_name: small\nmax_batch_requests: 4\nrequest_timeout_s: 30\n"
    )


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the runtime too
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), f"{name}/s"
        write_release(folder)
        env = {"SLIPWAY_SLOT": "green", "SLIPWAY_SOCKET": path, "SLIPWAY_RELEASE_DIR": name}
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime"], cwd=ROOT, env=os.environ | env
        )
        try:
            wait_until_ready(path, process)
            idle_mb = memory_mb(process.pid)
            print(f"idle: {idle_mb:.0f} MB; load {os.getloadavg()[0]:.1f}", flush=True)
            wanted = sys.argv[1:] or list(CASES)
            for name in wanted:
                connections, (route, body) = CASES[name]
                runs = [
                    measure(path, process.pid, connections, route, body.encode())
                    for _ in range(RUNS)
                ]
                longest_s, most_mb = min(run[0] for run in runs), min(run[2] for run in runs)
                print(
                    f"{name:<28} {longest_s * 1000:5.0f} ms  {most_mb - idle_mb:5.0f} MB  "
                    f"load {os.getloadavg()[0]:4.1f}  {sorted(set(map(str, runs[-1][3])))}"
                    f"  of {[round(run[0] * 1000) for run in runs]} ms, {runs[-1][1]} answers",
                    flush=True,
                )
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def wait_until_ready(path, process):
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        time.sleep(0.2)
        if Path(path).exists():
            connection = UnixConnection(path)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
    raise SystemExit("the runtime did not start: see above")


if __name__ == "__main__":
    if sys.argv[1:2] == ["probe"]:
        probe(sys.argv[2], int(sys.argv[3]))
    else:
        main()
