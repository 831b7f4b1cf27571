import pytest

from deploy.host.protocol import Golden, GoldenFailure, GoldenResult, SlotStart
from tests.unit.deploy.host.fakes import BUNDLE

PROMPTS = (
    {"prompt": "sun", "max_tokens": 4, "expected": "rises"},
    {"prompt": "rain", "max_tokens": 4, "expected": "falls"},
)


@pytest.fixture
def golden(leased, runtimes):
    leased.stage(BUNDLE, golden=PROMPTS)
    leased.call(SlotStart("green", BUNDLE))
    runtimes["green"].answers = {"sun": "rises", "rain": "falls"}
    return leased


def test_every_prompt_is_asked_at_temperature_0(golden, runtimes):
    """
    The answers of the slot are compared with those of the bundle.
    """
    assert golden.call(Golden("green")) == GoldenResult(total=2, passed=2, failures=())
    bodies = [body for body, _ in runtimes["green"].seen]
    assert bodies[0] == {"prompt": "sun", "max_tokens": 4, "temperature": 0}


def test_another_answer_is_a_failure(golden, runtimes):
    """
    With its line, what was expected and what came.
    """
    runtimes["green"].answers["rain"] = "rises"

    found = golden.call(Golden("green"))

    assert (found.total, found.passed) == (2, 1)
    assert found.failures == (GoldenFailure(line=2, expected="falls", got="rises"),)


def test_an_error_is_a_failure(golden, runtimes):
    """
    A slot that answers 500 has passed nothing.
    """
    runtimes["green"].fails_with = 500

    found = golden.call(Golden("green"))

    assert found.passed == 0
    assert found.failures[0].got.startswith("error 500")


def test_a_silent_slot_is_a_failure(golden, runtimes):
    """
    No socket, no answer, no pass.
    """
    runtimes["green"].close()
    golden.layout.runtime_socket("green").unlink()

    assert "without an answer" in golden.call(Golden("green")).failures[0].got


def test_the_api_token_of_the_host_is_sent(golden, runtimes):
    """
    A fleet that asks its clients for a token does not fail its own check.
    """
    golden.layout.etc.mkdir(parents=True, exist_ok=True)
    golden.layout.environment.write_text('# secrets\nSLIPWAY_API_TOKENS="t0ken,other"\n')

    golden.call(Golden("green"))

    assert runtimes["green"].seen[0][1]["Authorization"] == "Bearer t0ken"
    assert "t0ken" not in golden.layout.journal.read_text()


def test_prompts_that_are_over_time_have_not_passed(golden, runtimes):
    """
    The time is for all of them together.
    """
    real = golden.system.steady_s
    golden.system.steady_s = lambda: real() + 5.0 * len(runtimes["green"].seen)

    found = golden.call(Golden("green", timeout_s=4))

    assert found.passed == 1
    assert "not asked" in found.failures[0].got


def test_without_a_release_there_is_nothing_to_ask(leased):
    """
    A slot that was never started has no golden prompts.
    """
    assert leased.refusal(Golden("green")).kind == "PreconditionError"
