"""
Times the requests of a polite key alone and beside a flood of another one, against a real service.

    python -m tests.fairness_load --url http://127.0.0.1:8000 --polite TOKEN --flood TOKEN

Prints one JSON document: latencies in seconds, and how much the flood moved the 99th percentile.
The two are measured in turn, --rounds times, so that a slow minute of the machine is in both.
"""

import argparse
import asyncio
import json
import math
import ssl
import sys
import time

import httpx

PROMPT = "The lighthouse keeper "


async def ask(client, token, words, tokens):
    """
    Send one request; return its status.
    """
    body = {"prompt": PROMPT * words, "max_tokens": tokens, "temperature": 0}
    response = await client.post(
        "/generate", json=body, headers={"authorization": f"Bearer {token}"}
    )
    return response.status_code


async def polite(client, token, requests, pause_s):
    """
    Send *requests* one after the other; return their times in seconds.
    """
    times = []
    for _ in range(requests):
        began_s = time.monotonic()
        status = await ask(client, token, 2, 16)
        if status != 200:
            raise SystemExit(f"the polite key got status {status}")
        times.append(time.monotonic() - began_s)
        await asyncio.sleep(pause_s)
    return times


async def flood(client, token, workers, counts):
    """
    Keep *workers* requests in flight, without end.
    """

    async def work():
        while True:
            status = await ask(client, token, 4, 32)
            counts[status] = counts.get(status, 0) + 1
            if status != 200:
                await asyncio.sleep(0.05)

    await asyncio.gather(*(work() for _ in range(workers)))


def p(times, share):
    return sorted(times)[max(0, math.ceil(share * len(times)) - 1)]


async def measure(args):
    """
    Return the document; *args* are those of the command line.
    """
    tls = ssl.create_default_context(cafile=args.ca)

    def client():
        limits = httpx.Limits(max_connections=args.workers)
        return httpx.AsyncClient(base_url=args.url, timeout=120, limits=limits, verify=tls)

    alone, beside, counts = [], [], {}
    each = math.ceil(args.requests / args.rounds)
    async with client() as own:
        await polite(own, args.polite, 5, 0)
        for _ in range(args.rounds):
            alone += await polite(own, args.polite, each, args.pause)
            # Of its own: in a shared pool the polite key waits for connections, also for those
            # that an earlier flood left behind.
            async with client() as others:
                flooding = asyncio.create_task(flood(others, args.flood, args.workers, counts))
                await asyncio.sleep(args.warm)
                beside += await polite(own, args.polite, each, args.pause)
                flooding.cancel()
                await asyncio.gather(flooding, return_exceptions=True)
            await asyncio.sleep(args.warm)  # what it left in flight ends
    return result(alone, beside, counts) | {"workers": args.workers, "rounds": args.rounds}


def result(alone, beside, counts):
    """
    Return what the times in seconds of both say.
    """
    return {
        "requests": len(beside),
        "alone_s": {"p50": p(alone, 0.5), "p99": p(alone, 0.99)},
        "beside_s": {"p50": p(beside, 0.5), "p99": p(beside, 0.99)},
        "p99_ratio": p(beside, 0.99) / p(alone, 0.99),
        "flood_answers": {str(status): count for status, count in sorted(counts.items())},
    }


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fairness_load")
    parser.add_argument("--url", required=True)
    parser.add_argument("--polite", required=True, help="token of the polite key")
    parser.add_argument("--flood", required=True, help="token of the other key")
    parser.add_argument("--ca", help="PEM file of the authority of an https URL")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="of alone, then beside the flood")
    parser.add_argument("--workers", type=int, default=64, help="requests of the flood in flight")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between polite requests")
    parser.add_argument("--warm", type=float, default=2.0, help="seconds of flood before the times")
    document = asyncio.run(measure(parser.parse_args()))
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
