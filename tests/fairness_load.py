"""
Times the requests of a polite key alone and beside a flood of another one, against a real service.

    python -m tests.fairness_load --url http://127.0.0.1:8000 --polite TOKEN --flood TOKEN

Prints one JSON document: latencies in seconds, and how much the flood moved the 99th percentile.
"""

import argparse
import asyncio
import json
import math
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
    limits = httpx.Limits(max_connections=args.workers + 8)
    async with httpx.AsyncClient(base_url=args.url, timeout=120, limits=limits) as client:
        await polite(client, args.polite, 5, 0)
        alone = await polite(client, args.polite, args.requests, args.pause)
        counts: dict[int, int] = {}
        flooding = asyncio.create_task(flood(client, args.flood, args.workers, counts))
        await asyncio.sleep(args.warm)
        beside = await polite(client, args.polite, args.requests, args.pause)
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
    return {
        "requests": args.requests,
        "workers": args.workers,
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
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--workers", type=int, default=64, help="requests of the flood in flight")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between polite requests")
    parser.add_argument("--warm", type=float, default=2.0, help="seconds of flood before the times")
    result = asyncio.run(measure(parser.parse_args()))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
