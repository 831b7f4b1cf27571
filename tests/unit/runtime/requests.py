"""
Builders of requests and joins, with flat sampling parameters.
"""

from runtime.engines.base.protocol import Submit
from runtime.engines.base.sampling import SamplingParams
from runtime.engines.paged.step import Join


def make_request(id, tokens, max_tokens, timeout_s, temperature=0.0, top_p=1.0, seed=None):
    """
    Return the engine message of one request.
    """
    return Submit(id, tokens, SamplingParams(max_tokens, temperature, top_p, seed), timeout_s)


def make_join(slot, pages, temperature=0.0, top_p=1.0, seed=0):
    """
    Return the first appearance of a row in a step.
    """
    return Join(slot, pages, SamplingParams(1, temperature, top_p, seed))
