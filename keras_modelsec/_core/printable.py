"""Untrusted text on its way to a terminal, a log or a message.

Owns the one function that everything of the kind goes through: names of files, tensors and models,
certificates' subjects and issuers, whose a key is and why it was revoked, provenance, versions.
"""


def printable(text: object, *, keep: str = "") -> str:
    """`text` without what could start a line, steer a terminal or turn the letters around.

    Everything that Unicode does not call printable is written as its escape: control characters
    (C0 and C1), line and paragraph separators, bidirectional and other invisible format characters,
    unassigned ones, and lone surrogates (bytes of a file name that are no text).

    It does not tell letters apart that look alike.

    Args:
        text: Anything; its `str`.
        keep: Characters to leave as they are, such as the line feeds of a text of several lines
            that was put together of cleaned parts.

    Returns:
        Text that every UTF-8 stream can take.
    """
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in str(text))
