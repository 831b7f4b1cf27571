"""
Patterns of host names, as in known_hosts.
"""


def matches(pattern: str, name: str) -> bool:
    """
    Return whether *name* fits *pattern*, in which `*` stands for any text and `?` for a character.

    Takes at most len(pattern) * len(name) steps: with the stars of a hostile pattern a regular
    expression takes exponentially many.
    """
    in_pattern = in_name = 0
    star: int | None = None  # place of the last star; it stands for the text up to `resume`
    resume = 0
    while in_name < len(name):
        if in_pattern < len(pattern) and pattern[in_pattern] == "*":
            star, resume = in_pattern, in_name
            in_pattern += 1
        elif in_pattern < len(pattern) and pattern[in_pattern] in ("?", name[in_name]):
            in_pattern += 1
            in_name += 1
        elif star is not None:
            resume += 1
            in_pattern, in_name = star + 1, resume
        else:
            return False
    return all(character == "*" for character in pattern[in_pattern:])
