"""
`python -m runtime`: joins the parts and runs them.  Exit codes are in contract.py.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from runtime.config import load_settings
from runtime.engine.client import launch
from runtime.errors import RuntimeFault
from runtime.notify import Notifier

log = logging.getLogger("runtime")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime", description="Serve one release.")
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="listen on this loopback port in place of the Unix socket; for development",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        settings = load_settings(os.environ, port=args.port)
    except RuntimeFault as error:
        log.error("runtime.failed exit_code=%d\n%s", error.exit_code, error)
        return error.exit_code
    child = launch(settings.config.threads)
    # Only now, while the engine imports torch: FastAPI takes its time, too.
    from runtime.server import serve

    return asyncio.run(serve(settings, child, Notifier.from_env(os.environ)))


if __name__ == "__main__":
    raise SystemExit(main())
