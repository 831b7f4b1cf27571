import pytest

from deploy.wheelhouse.lock import digest_of, lock_text, pins_in

A, B = "a" * 64, "b" * 64


def test_the_same_pins_give_the_same_text():
    """
    Layout, comments, order and the order of hashes do not matter.
    """
    one = f"# by a tool\nzope==1 \\\n    --hash=sha256:{B} \\\n    --hash=sha256:{A}\n    # via x\n"
    two = f"zope==1 --hash=sha256:{A} --hash=sha256:{B}\n"
    torch = f"torch==2.0+cpu --hash=sha256:{A}\n"
    assert lock_text(one, torch) == lock_text(torch, two)
    assert lock_text(one, torch) == (
        f"torch==2.0+cpu --hash=sha256:{A}\nzope==1 --hash=sha256:{A} --hash=sha256:{B}\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.0",  # no hash
        f"torch>=2.0 --hash=sha256:{A}",  # not a pin
        f"torch==2.0 --hash=sha256:{A} --index-url=somewhere",
        f"torch==2.0 ; python_version<'3' --hash=sha256:{A}",
        "--extra-index-url somewhere",
        f"torch==2.0 --hash=md5:{A}",
    ],
)
def test_what_is_not_a_hashed_pin_is_refused(line):
    """
    A lock has exact versions with SHA-256 hashes and nothing else, least of all addresses.
    """
    with pytest.raises(ValueError, match=r"should be|no hash"):
        lock_text(line)


def test_a_project_is_pinned_once():
    """
    Two spellings of one name are one project.
    """
    with pytest.raises(ValueError, match="zope-x is pinned twice"):
        lock_text(f"zope.x==1 --hash=sha256:{A}", f"Zope_x==2 --hash=sha256:{A}")


def test_the_digest_is_that_of_the_text():
    """
    sha256 of the bytes, as `sha256sum` prints it.
    """
    assert digest_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_line_of_the_python_is_no_package():
    text = lock_text(f"a==1 --hash=sha256:{'0' * 64}", f"b==2 --hash=sha256:{'1' * 64}")
    assert pins_in(text) == pins_in(f"# python: 3.12\n{text}") == 2
