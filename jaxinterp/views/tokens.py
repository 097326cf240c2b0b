"""How a token looks in every picture: spaces, newlines and bytes that nobody could see made visible."""

import unicodedata

SPACE, NEWLINE, RETURN, TAB, EMPTY = "␣", "⏎", "␍", "⇥", "∅"


def visible(token: str) -> str:
    """A token as people can read it.

    Spaces become ␣, line ends ⏎, tabs ⇥, other control characters their picture; characters without a shape of their
    own (zero width, direction marks, stray combining marks) become <U+200B>. Pieces of a character such as <0xE2> stay.

    Example:
        >>> visible(" Mary"), visible("\\n\\n"), visible("")
        ('␣Mary', '⏎⏎', '∅')
    """
    if not token:
        return EMPTY
    shown = "".join(map(_visible_character, token))
    return f"◌{shown}" if unicodedata.combining(token[0]) else shown


def shorten(token: str, width: int) -> str:
    """A visible token of at most `width` characters, cut with an ellipsis."""
    shown = visible(token)
    return shown if len(shown) <= width else shown[: max(width - 1, 0)] + "…"


def _visible_character(character: str) -> str:
    named = {" ": SPACE, "\n": NEWLINE, "\r": RETURN, "\t": TAB}
    if character in named:
        return named[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    category = unicodedata.category(character)
    if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs") or character == "\u3164":
        return f"<U+{code:04X}>"
    return character
