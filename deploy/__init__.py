"""
Runs on the operator's machine or in CI: plans, provisions, releases and verifies over SSH.

It imports `runtime.contract` and nothing else of the runtime.
"""
