"""
Bounds of one rendering, and the messages between the API and the process that renders.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """
    Attributes:
        compile_cpu_s: CPU time to compile all templates of a model.
        cpu_s: CPU time of one rendering.  A call into C is not interrupted: then the process ends
            after twice this time.
        wait_s: Time after which the process is ended although it used less.
        characters: Of the rendered text.
        memory_bytes: That the process may take beside what it has when it is ready.
    """

    compile_cpu_s: float = 10.0
    cpu_s: float = 1.0
    wait_s: float = 20.0
    characters: int = 8 << 20
    memory_bytes: int = 256 << 20


# First byte of an answer; its text follows.
READY, TEXT, REFUSED, LIMIT = b"R", b"T", b"N", b"L"
READS_TOOLS = b"tools"  # text of READY: the template reads that variable
