"""
Builds one of the lab's tiny models: `python -m deploy.lab.models --out DIR --kind good-v1`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.lab.models.build import KINDS, build
from deploy.private_files import use_private_umask

log = logging.getLogger("deploy.lab.models")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.lab.models", description="Build one of the lab's tiny models."
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--cache", type=Path, help="directory that keeps trained weights")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    use_private_umask()
    build(args.kind, args.out, cache=args.cache)
    log.info("model.built kind=%s out=%s", args.kind, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
