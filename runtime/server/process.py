"""
One runtime process from start to end: socket, engine, warm-up, ready, drain, exit code.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import uvicorn

from runtime.contract import EXIT_ENGINE, EXIT_OK
from runtime.contract.errors import ConfigError, EngineError, RuntimeFault
from runtime.engines.base.protocol import EngineReport, Load
from runtime.engines.paged.client import EngineClient, EngineProcess
from runtime.engines.vllm.client import VllmClient
from runtime.engines.vllm.process import VllmProcess
from runtime.server.answers import syntax_of
from runtime.server.api import create_app
from runtime.server.body import DRAIN_S
from runtime.server.config import Settings
from runtime.server.connection import MAX_HEAD_BYTES, HttpConnection
from runtime.server.generation import Generator
from runtime.server.grammars import GrammarReader
from runtime.server.key_watch import KeyWatch
from runtime.server.lifecycle import Life, LifeEvent
from runtime.server.metrics import Metrics
from runtime.server.middleware import App
from runtime.server.model_files import check_tokens, open_model_files
from runtime.server.notify import Notifier, Watchdog
from runtime.server.serving import Serving
from runtime.server.warmup import check_prompt, fitted, warm_up
from runtime.structured.process import GrammarChecker

log = logging.getLogger("runtime.server")

BEAT_S = 1.0  # of an idle engine without a watchdog
ANSWER_S = 5.0  # at least, for answers to reach their clients after the engine has finished


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # our own handlers: a SIGTERM drains before the server stops


def make_http_server(app: App) -> uvicorn.Server:
    """
    Return the HTTP server of *app*, with the limits of its connections.
    """
    return _Uvicorn(
        uvicorn.Config(
            app,
            http=HttpConnection,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # its warnings are of what a client sent
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,  # longer than a proxy keeps an idle connection
            timeout_graceful_shutdown=int(ANSWER_S),
        )
    )


class RuntimeServer:
    """
    Runs the parts and drives `Life`.
    """

    def __init__(
        self, settings: Settings, child: EngineProcess | VllmProcess, notifier: Notifier
    ) -> None:
        config = settings.config
        self._settings, self._notifier = settings, notifier
        self._life = Life()
        self._metrics = Metrics(config.version, settings.slot)
        self._watchdog = Watchdog(notifier)
        self._engine = (
            EngineClient(child, self._on_report)
            if isinstance(child, EngineProcess)
            else VllmClient(child, self._on_report)
        )
        keys = KeyWatch(settings.keys_file, settings.host_key_file, self._metrics.keys)
        self._serving = Serving(
            settings, self._life, self._metrics, check_prompt(settings.golden_file), keys=keys
        )
        self._serving.uploads.max_body_bytes = config.max_body_bytes
        self._cleanup = contextlib.ExitStack()
        self._terminated = asyncio.Event()
        self._uvicorn = make_http_server(create_app(self._serving))

    async def run(self) -> int:
        """
        Serve until SIGTERM or the engine's end; return the exit code.

        Raises:
            RuntimeFault: The start failed; it has its own exit code.
        """
        listener = _bind(self._settings)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._terminated.set)
        http = asyncio.create_task(self._uvicorn.serve(sockets=[listener]))
        terminated = asyncio.create_task(self._terminated.wait())
        life = asyncio.create_task(self._start())
        watching = asyncio.create_task(self._serving.keys.run())
        try:
            await asyncio.wait(
                (http, terminated, life, self._engine.died), return_when=asyncio.FIRST_COMPLETED
            )
            if not terminated.done() and life.done() and not life.exception():
                await asyncio.wait(
                    (http, terminated, self._engine.died), return_when=asyncio.FIRST_COMPLETED
                )
            return await self._end(terminated.done(), life)
        finally:
            for task in (terminated, life, watching):
                task.cancel()
            self._uvicorn.should_exit = True
            await http
            status = await self._engine.close()
            self._cleanup.close()
            if self._settings.socket is not None:
                self._settings.socket.unlink(missing_ok=True)
            log.info("runtime.stopped phase=%s engine_status=%s", self._life.phase, status)

    async def _start(self) -> None:
        started_s = time.monotonic()
        config = self._settings.config
        self._notifier.status(f"loading {config.model_name} {config.version}")
        files = open_model_files(self._settings.model_dir, config.options)
        self._cleanup.callback(files.close)
        codec = files.codec
        # It reads the tokenizer while the engine reads the weights.
        checker = GrammarChecker(self._settings.model_dir / "tokenizer.json")
        self._cleanup.callback(checker.close)
        await self._engine.connect()
        loaded = await self._engine.load(
            Load(
                str(self._settings.model_dir),
                min((self._notifier.watchdog_s or BEAT_S * 4) / 4, BEAT_S),
                config.options,
                sorted(codec.eos_token_ids),
            )
        )
        # vLLM does not say how many rows the embedding has.
        vocabulary = loaded.vocabulary or codec.vocabulary
        if warning := check_tokens(self._settings.model_dir, codec, vocabulary):
            log.warning("model.tokens_without_rows %s", warning)
        limits = config.limits(loaded.context_tokens, vocabulary)
        self._serving.uploads.fit_context(limits.context_tokens, codec.longest_token_bytes)
        self._serving.generator = generator = Generator(
            self._engine,
            codec,
            limits,
            self._metrics.first_token,
            files.template,
            syntax_of(config.tool_parser, files.template),
            loaded.generates,
            GrammarReader(checker),
        )
        if loaded.dimensions:
            generator.make_embeddings(loaded.dimensions, loaded.shorter_dimensions)
        self._serving.defaults = files.generation_defaults
        self._serving.since = int(time.time())
        self._serving.check = await fitted(
            self._serving.check,
            generator.prompts,
            limits,
            self._settings.golden_file,
            generates=loaded.generates,
        )
        self._life.on(LifeEvent.LOADED)
        self._notifier.status(f"warming up {config.model_name} {config.version}")
        warm_s = time.monotonic()
        await warm_up(self._settings, self._serving.own_token)
        self._life.on(LifeEvent.WARMED)
        gc.collect()
        gc.freeze()  # garbage collections skip what is loaded now
        self._notifier.ready(f"serving {config.model_name} {config.version}")
        log.info(
            "runtime.ready version=%s slot=%s parameters=%d load_s=%.2f warm_up_s=%.2f took_s=%.2f",
            config.version,
            self._settings.slot,
            loaded.parameters,
            loaded.took_s,
            time.monotonic() - warm_s,
            time.monotonic() - started_s,
        )

    async def _end(self, is_terminated: bool, life: "asyncio.Task[None]") -> int:
        if is_terminated:
            life.cancel()
            return await self._drain()
        if self._engine.died.done():
            await asyncio.wait((life,), timeout=ANSWER_S)  # the start has the better error
        self._life.on(LifeEvent.BROKEN)
        if life.done() and (error := life.exception()):
            self._notifier.stopping(f"failed: {error}")
            raise error
        if self._engine.died.done():
            why = f"the engine died, {self._engine.exit_reason}"
            self._notifier.stopping(why)
            log.error("engine.died why=%r", self._engine.exit_reason)
            return EXIT_ENGINE
        raise EngineError(
            "the HTTP server stopped by itself",
            why="uvicorn left its loop",
            fix="see the lines above in the unit's log",
        )

    async def _drain(self) -> int:
        config = self._settings.config
        self._life.on(LifeEvent.TERMINATED)
        generator = self._serving.generator
        in_flight = generator.load.in_flight if generator else 0
        self._notifier.stopping(f"draining {in_flight} requests")
        log.info("runtime.drain_started in_flight=%d", in_flight)
        self._serving.uploads.end_in(DRAIN_S)
        started_s = time.monotonic()
        drained = asyncio.create_task(self._engine.drain(config.drain_timeout_s))
        await asyncio.wait((drained, self._engine.died), return_when=asyncio.FIRST_COMPLETED)
        if self._engine.died.done():
            self._life.on(LifeEvent.BROKEN)
            log.error("engine.died why=%r", self._engine.exit_reason)
            return EXIT_ENGINE
        left = self._engine.abandon()
        self._life.on(LifeEvent.DRAINED)
        took_s = time.monotonic() - started_s
        # A client that reads slowly has the same time as one whose answer is slow.
        self._uvicorn.config.timeout_graceful_shutdown = ceil(
            max(config.drain_timeout_s - took_s, ANSWER_S)
        )
        log.info("runtime.drain_ended abandoned=%d took_s=%.2f", left, took_s)
        return EXIT_OK

    def _on_report(self, report: EngineReport) -> None:
        self._metrics.engine(report)
        self._watchdog.beat(time.monotonic())


def _bind(settings: Settings) -> socket.socket:
    """
    Return a listening socket: the Unix socket, 0660, or a loopback port.
    """
    address: str | tuple[str, int]
    if settings.socket is None:
        assert settings.port is not None
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by its connections; asyncio sets it only where the protocol is named.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = ("127.0.0.1", settings.port)
    else:
        _remove_stale(settings.socket)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address = str(settings.socket)
    umask = os.umask(0o117)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{address}: can't listen",
            why=str(error),
            fix="give a path in a directory that this user may write, or a free port",
        ) from error
    finally:
        os.umask(umask)
    listener.setblocking(False)
    return listener


def _remove_stale(path: Path) -> None:
    """
    Remove the socket of a runtime that has ended.

    Raises:
        ConfigError: The path is no socket, or a runtime answers on it.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    why = "it is not a socket"
    if stat.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
        why = "another runtime listens on it"
    raise ConfigError(f"{path}: is taken", why=why, fix="stop what uses it, or remove it")


async def serve(settings: Settings, child: EngineProcess | VllmProcess, notifier: Notifier) -> int:
    """
    Run one runtime process; return its exit code.
    """
    try:
        return await RuntimeServer(settings, child, notifier).run()
    except RuntimeFault as error:
        log.error("runtime.failed exit_code=%d\n%s", error.exit_code, error)
        return error.exit_code
