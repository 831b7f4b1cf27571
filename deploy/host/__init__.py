"""
What runs on a host: `python3 slipway-host.pyz VERB`, one JSON document in, one line of JSON out.

Ships alone, as one file, to hosts that have Python 3.9 and nothing else: standard library only, no
import of `deploy` outside of this package.  Every verb may be killed at any line and run again.
It never opens a connection to another machine.
"""
