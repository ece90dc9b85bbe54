"""What went wrong, in words for a sentence: of an error its kind and the start of what it says."""

LONGEST = 300
"""Characters of what an error says that a sentence repeats."""


def said(error: BaseException) -> str:
    r"""Return an error's kind and the first paragraph of what it says, see `in_one_line`.

    >>> said(ValueError("Expected more:\n  of them.\n\nDetails.")), said(AssertionError())
    ('ValueError: Expected more: of them', 'AssertionError')
    """
    kind, text = type(error).__name__, in_one_line(str(error))
    return f"{kind}: {text}" if text else kind


def in_one_line(text: str) -> str:
    """Return the first paragraph of a text in one line of at most `LONGEST` characters, without the stop at its end."""
    line = " ".join(text.strip().partition("\n\n")[0].split()).rstrip(".")
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
