"""
`python -m deploy.cli`, which ./inv starts.
"""

import signal
import sys

# ^C during the imports: first an end without a traceback, then one that `error_boundary` reports.
# Where the caller ignores SIGINT, as nohup does, it stays ignored.
_is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _is_heeded:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from deploy.cli.boundary import error_boundary  # noqa: E402

try:
    with error_boundary(as_json="--json" in sys.argv, as_line="--watch" in sys.argv):
        if _is_heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        from deploy.cli.program import main

        main()
finally:
    if _is_heeded:  # all is told; what is left is the end of the interpreter
        signal.signal(signal.SIGINT, signal.SIG_DFL)
