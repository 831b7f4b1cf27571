"""
Settings of all property tests.
"""

from hypothesis import HealthCheck, settings

# The time of an example is no property: a busy machine may take any.  Derived from the profile in
# use, so that on a CI system examples are still the same in each run.
settings.register_profile(
    "any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
