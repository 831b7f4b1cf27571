"""
Runs the assertions of `tests/testinfra` on hosts, over SSH.  Changes nothing.
"""

from deploy.verify.report import Finding, VerifyReport
from deploy.verify.run import verify

__all__ = ["Finding", "VerifyReport", "verify"]
