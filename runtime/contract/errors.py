"""
Errors that stop the runtime on purpose, with their exit codes.

RuntimeFault
├── ConfigError   78   a file, key or variable is wrong; a restart will not help
├── ModelError    78   the model directory is not one that this runtime can serve
└── EngineError   70   the engine died, could not load, or did not answer the warm-up
"""

from runtime.contract import EXIT_CONFIG, EXIT_ENGINE
from runtime.contract.visible_text import visible

_LIMIT = 4000  # characters of a part of the text


class RuntimeFault(Exception):
    """
    Base of every error raised on purpose.

    Args:
        what: What failed, named: a file and key, a variable.
        why: What was observed.
        fix: What the operator does next.
    """

    exit_code = EXIT_ENGINE

    def __init__(self, what: str, *, why: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        what, why, fix = (visible(text, limit=_LIMIT) for text in (self.what, self.why, self.fix))
        return f"{what}\n  why: {why}\n  fix: {fix}"


class ConfigError(RuntimeFault):
    exit_code = EXIT_CONFIG


class ModelError(RuntimeFault):
    exit_code = EXIT_CONFIG


class EngineError(RuntimeFault):
    exit_code = EXIT_ENGINE
