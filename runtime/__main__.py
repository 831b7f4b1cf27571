"""
`python -m runtime`: starts the engine process, then the API process.

`python -m runtime check` only plans the memory.  Exit codes are in `runtime.contract`.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from runtime.contract.errors import RuntimeFault
from runtime.engines.base.logs import configure_logging
from runtime.engines.base.slow_imports import without_collections
from runtime.engines.paged.client import launch
from runtime.engines.vllm.process import VllmModel, launch_vllm
from runtime.server import check
from runtime.server.config import Settings, load_settings
from runtime.server.notify import Notifier

log = logging.getLogger("runtime")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime", description="Serve one release.")
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="listen on this loopback port in place of the Unix socket; for development",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    check.add_arguments(commands.add_parser("check", help="say what the model takes of memory"))
    args = parser.parse_args(argv)
    if args.command == "check":
        # Whoever runs it on a host may be root, and provisioning compares every file of the
        # environment: neither this process nor its children add bytecode to it.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        return check.run(args, os.environ, sys.stdout, sys.stderr)
    configure_logging()
    try:
        settings = load_settings(os.environ, port=args.port)
        notifier = Notifier.from_env(os.environ)
        config = settings.config
        logging.getLogger().setLevel(config.log_level.upper())
        if config.request_log:  # it has a key of its own
            logging.getLogger("runtime.middleware").setLevel(logging.INFO)
        child = (
            launch(config.options.threads)
            if config.options.engine == "slipway"
            else launch_vllm(_vllm_model(settings), os.environ)
        )
    except RuntimeFault as error:
        log.error("runtime.failed exit_code=%d\n%s", error.exit_code, error)
        return error.exit_code
    # Only now, while the engine process imports torch: importing FastAPI is slow, too.
    with without_collections():
        from runtime.server.process import serve

    return asyncio.run(serve(settings, child, notifier))


def _vllm_model(settings: Settings) -> VllmModel:
    config = settings.config
    return VllmModel(settings.model_dir, config.model_name, config.options, settings.socket)


if __name__ == "__main__":
    raise SystemExit(main())
