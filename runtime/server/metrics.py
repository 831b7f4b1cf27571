"""
The Prometheus metrics, each with the labels version and slot.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from runtime.contract import (
    BATCH_REQUESTS,
    CACHED_TOKENS_TOTAL,
    EXCUSED_TOTAL,
    FIRST_TOKEN_SECONDS,
    KEY_CACHED_TOKENS_TOTAL,
    KEY_GENERATED_TOKENS_TOTAL,
    KEY_PROMPT_TOKENS_TOTAL,
    KEY_REQUESTS_TOTAL,
    KEYS_REJECTED,
    KEYS_VERSION,
    KV_PAGES,
    KV_PAGES_USED,
    OOM_SPLITS_TOTAL,
    PROMPT_TOKENS_TOTAL,
    QUEUE_REQUESTS,
    REQUEST_SECONDS,
    REQUESTS_TOTAL,
    TOKENS_TOTAL,
)
from runtime.engines.base.protocol import EngineReport
from runtime.server.caller import Usage
from runtime.server.key_watch import KeyWatch

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MAX_KEY_NAMES = 100  # values of the label `key`; the requests of further keys are those of "other"
OTHER_KEYS = "other"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """
    The metrics of one process.
    """

    def __init__(self, version: str, slot: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second, unused series for each
        self._own = (version, slot)
        self._registry = registry = CollectorRegistry()
        own = ("version", "slot")
        self._requests = Counter(
            REQUESTS_TOTAL,
            "Answered requests, by final status",
            (*own, "route", "code"),
            registry=registry,
        )
        self._excused = Counter(
            EXCUSED_TOTAL,
            "Answers with a 5xx that is the client's doing",
            (*own, "route", "reason"),
            registry=registry,
        )
        self._seconds = Histogram(
            REQUEST_SECONDS,
            "Whole time of a request",
            (*own, "route"),
            registry=registry,
            buckets=SECONDS,
        )
        self._first = Histogram(
            FIRST_TOKEN_SECONDS,
            "From the request to its first token",
            own,
            registry=registry,
            buckets=SECONDS,
        ).labels(*self._own)
        self._tokens = Counter(TOKENS_TOTAL, "Tokens generated", own, registry=registry).labels(
            *self._own
        )
        self._queue = Gauge(
            QUEUE_REQUESTS, "Requests that wait for the batch", own, registry=registry
        ).labels(*self._own)
        self._batch = Histogram(
            BATCH_REQUESTS,
            "Requests computed in one step",
            own,
            registry=registry,
            buckets=REQUESTS,
        ).labels(*self._own)
        self._prompt_tokens = Counter(
            PROMPT_TOKENS_TOTAL, "Tokens of prompts computed", own, registry=registry
        ).labels(*self._own)
        self._cached_tokens = Counter(
            CACHED_TOKENS_TOTAL,
            "Tokens of prompts found in the prefix cache",
            own,
            registry=registry,
        ).labels(*self._own)
        self._pages_used = Gauge(
            KV_PAGES_USED, "Pages of the KV cache that requests hold", own, registry=registry
        ).labels(*self._own)
        self._pages = Gauge(KV_PAGES, "Pages of the KV cache", own, registry=registry).labels(
            *self._own
        )
        self._splits = Counter(
            OOM_SPLITS_TOTAL,
            "Steps that ran out of memory and were split",
            own,
            registry=registry,
        ).labels(*self._own)

        self._key_names: set[str] = set()
        of_key = (*own, "key")
        self._key_requests = Counter(
            KEY_REQUESTS_TOTAL,
            "Answered requests of an API key, by final status",
            (*of_key, "code"),
            registry=registry,
        )
        self._key_tokens = tuple(
            Counter(name, text, of_key, registry=registry)
            for name, text in (
                (KEY_PROMPT_TOKENS_TOTAL, "Tokens of prompts of an API key"),
                (KEY_CACHED_TOKENS_TOTAL, "Of them, found in the prefix cache"),
                (KEY_GENERATED_TOKENS_TOTAL, "Tokens generated for an API key"),
            )
        )
        self._keys_version = Gauge(
            KEYS_VERSION, "Version of the list of API keys in force", own, registry=registry
        ).labels(*self._own)
        self._keys_rejected = Gauge(
            KEYS_REJECTED, "1 while the file of API keys is not valid", own, registry=registry
        ).labels(*self._own)

    def used(self, key: str, code: int, usage: Usage) -> None:
        """
        Count one request of *key*, and what it used.
        """
        if key not in self._key_names:
            if len(self._key_names) >= MAX_KEY_NAMES:
                key = OTHER_KEYS
            else:
                self._key_names.add(key)
        self._key_requests.labels(*self._own, key, str(code)).inc()
        used = (usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens)
        for counter, count in zip(self._key_tokens, used, strict=True):
            counter.labels(*self._own, key).inc(count)

    def keys(self, watch: KeyWatch) -> None:
        """
        Record which list of API keys is in force.
        """
        self._keys_version.set(watch.ring.version if watch.ring else 0)
        self._keys_rejected.set(watch.problem is not None)

    def answered(self, route: str, code: int, seconds: float, *, excuse: str | None = None) -> None:
        """
        Count one request.

        Args:
            code: Its final status, also where the status line was 200.
            excuse: Why a 5xx says nothing about this runtime, one of `EXCUSES`.
        """
        if excuse is not None:
            self._excused.labels(*self._own, route, excuse).inc()
        self._requests.labels(*self._own, route, str(code)).inc()
        self._seconds.labels(*self._own, route).observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def engine(self, report: EngineReport) -> None:
        """
        Record one report of the engine.
        """
        self._queue.set(report.waiting)
        if report.tokens:
            self._tokens.inc(len(report.tokens))
        if report.batch:
            self._batch.observe(report.batch)
        self._prompt_tokens.inc(report.prompt_tokens)
        self._cached_tokens.inc(report.cached_tokens)
        self._pages_used.set(report.pages_used)
        self._pages.set(report.pages)
        self._splits.inc(report.oom_splits)

    def render(self) -> bytes:
        return generate_latest(self._registry)
