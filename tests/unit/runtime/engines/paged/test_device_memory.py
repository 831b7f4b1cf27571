"""
Which lack of memory may pass.
"""

import pytest

from runtime.contract.errors import ConfigError, EngineError
from runtime.engines.base.host_memory import AVAILABLE
from runtime.engines.paged.device_memory import plan_for
from tests.unit.runtime.memory.test_plan import EVEN, make_options


def test_too_little_available_memory_may_pass_and_a_limit_does_not():
    """
    A unit is not started again after a configuration error: the old slot would stay down, because
    the new one had the memory at that moment.
    """
    options = make_options(device="cpu")
    with pytest.raises(EngineError, match="does not fit"):
        plan_for(options, EVEN, 1 << 20, AVAILABLE)
    with pytest.raises(ConfigError, match="does not fit"):
        plan_for(options, EVEN, 1 << 20, "/sys/fs/cgroup/memory.max")
