"""
Asserts what hosts are like, over SSH, with the tests of `tests/testinfra`.  Changes nothing.
"""

from deploy.verify.report import Finding, VerifyReport
from deploy.verify.run import verify

__all__ = ["Finding", "VerifyReport", "verify"]
