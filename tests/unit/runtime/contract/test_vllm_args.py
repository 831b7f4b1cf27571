import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.contract import vllm_args
from runtime.contract.vllm_args import FROM_KEYS, SWITCHES, WITH_VALUE, check_vllm_arg

# Of `vllm serve`: each reads or writes files, connects, or imports code.
DANGEROUS = (
    "--allowed-local-media-path=/", "--api-key=k", "--api-server-count=2", "--chat-template=/etc/x",
    "--code-revision=x", "--collect-detailed-traces=all", "--compilation-config={}", "-O3",
    "--compilation-config.mode=3", "--config=/x.yml", "--data-parallel-address=1.2.3.4",
    "--distributed-executor-backend=ray", "--download-dir=/tmp", "--enable-lora",
    "--enable-prompt-embeds", "--enable-request-id-headers", "--generation-config=/x",
    "--headless", "--hf-config-path=/x", "--hf-overrides={}", "--hf-token=x", "--host=0.0.0.0",
    "--io-processor-plugin=x", "--kv-events-config={}", "--kv-transfer-config={}",
    "--load-format=pt", "--load-format=runai_streamer", "--log-config-file=/x",
    "--logits-processors=os.system", "--lora-modules=x=/y", "--middleware=os.system",
    "--model=/x", "--model-loader-extra-config={}", "--otlp-traces-endpoint=http://x",
    "--port=80", "--quantization=/x", "--reasoning-parser-plugin=/x.py", "--revision=x",
    "--root-path=/x", "--runner=pooling", "--served-model-name=x", "--speculative-config={}",
    "--ssl-keyfile=/x", "--tokenizer=/x", "--tool-parser-plugin=/x.py", "--trust-remote-code",
    "--uds=/x", "--worker-cls=os.system", "--worker-extension-cls=os.system", "--disable-log-stats",
)  # fmt: skip


@pytest.mark.parametrize("arg", DANGEROUS)
def test_what_reads_writes_connects_or_imports_is_refused(arg):
    """
    And not by its name alone: an allow-list has no gap for the next version of vLLM.
    """
    with pytest.raises(ValueError):
        check_vllm_arg(arg)


def test_an_argument_that_were_on_the_list_would_pass(monkeypatch):
    """
    Negative control: the list refuses, nothing else does.
    """
    monkeypatch.setattr(vllm_args, "SWITCHES", SWITCHES | {"--trust-remote-code"})
    assert check_vllm_arg("--trust-remote-code") == "--trust-remote-code"


@pytest.mark.parametrize(
    "arg",
    ["--stream-interval=4", "--cpu-offload-gb=1.5", "--quantization=fp8", "--enforce-eager",
     "--no-enable-prefix-caching", "--seed=0"],
)  # fmt: skip
def test_numbers_words_and_switches_are_accepted(arg):
    """
    As they are written.
    """
    assert check_vllm_arg(arg) == arg


@pytest.mark.parametrize(
    ("arg", "remedy"),
    [
        ("--stream-interval", "--stream-interval=VALUE"),
        ("4", "each entry is --name=value"),
        ("--max-num-seqs=4", "set the key max_batch_requests"),
        ("--strem-interval=4", "did you mean --stream-interval?"),
        ("--stream_interval=4", "did you mean --stream-interval?"),
        ("--seed=1\n", "should match"),
        ("--seed=\u0661", "should match"),
        ("--enforce-eager=x", "did you mean"),
    ],
)
def test_a_refusal_says_what_to_write(arg, remedy):
    """
    Also for the form of earlier versions: a name and its value in two entries.
    """
    with pytest.raises(ValueError, match=remedy.replace("?", r"\?")):
        check_vllm_arg(arg)


@given(st.sampled_from(sorted(WITH_VALUE)), st.text() | st.text(string.printable))
def test_no_accepted_value_is_a_path_a_url_or_json(name, value):
    """
    Values are letters, digits and . _ - only.
    """
    try:
        check_vllm_arg(f"{name}={value}")
    except ValueError:
        return
    assert set(value) <= set(string.ascii_letters + string.digits + "._-")


def test_the_lists_do_not_overlap():
    """
    One rule an argument.
    """
    names = [*WITH_VALUE, *SWITCHES, *FROM_KEYS]
    assert len(names) == len(set(names))
