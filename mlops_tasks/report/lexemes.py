"""Python text cut into pieces of a class: keywords, names, operators, literals, comments, indentation.

One rule for the colours of shown code and for the weights of token classes. It takes broken code too, which a model may write and
Python's own tokenizer would refuse.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Sequence

_KEYWORDS = "|".join(keyword.kwlist)
_LEXEMES = re.compile(
    rf"""(?P<comment>\#[^\n]*)"""
    rf"""|(?P<string>(?:\b[rbfuRBFU]{{1,2}})?(?:"{{3}}[\s\S]*?(?:"{{3}}|\Z)|'{{3}}[\s\S]*?(?:'{{3}}|\Z)"""
    rf"""|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?))"""
    rf"""|(?P<keyword>\b(?:{_KEYWORDS})\b)"""
    r"""|(?P<number>\b\d[\w.]*)"""
    r"""|(?P<name>[^\W\d]\w*)"""
    r"""|(?P<indentation>\n[^\S\n]*|\A[^\S\n]+)"""
    r"""|(?P<operator>[^\w\s])"""
)
_CLASSES = {
    "name": "names",
    "keyword": "keywords",
    "operator": "operators",
    "string": "literals",
    "number": "literals",
    "indentation": "indentation",
    "comment": "comments",
}
CLASSES = (*dict.fromkeys(_CLASSES.values()), "other")
"""Every class that `token_classes` gives; other is what is no Python: blanks within a line, the end of a text."""
_MARKER = re.compile(r"<[^<>\s]+>")


def lexemes(text: str) -> Iterator[tuple[str, int, int]]:
    """Kind, start and end of each piece; blanks within a line belong to none.

    >>> [(kind, "if  x"[start:end]) for kind, start, end in lexemes("if  x")]
    [('keyword', 'if'), ('name', 'x')]
    """
    return ((str(found.lastgroup), found.start(), found.end()) for found in _LEXEMES.finditer(text))


def token_classes(tokens: Sequence[str]) -> list[str]:
    """The class of each token of a model whose tokens together are Python text.

    A token belongs where its first character that is not blank does, a blank one where it stands.

    >>> token_classes(["def", " f", "(x", "):", "\\n", "    ", "return", " 1", "<end>"])
    ['keywords', 'names', 'operators', 'operators', 'indentation', 'indentation', 'keywords', 'literals', 'other']
    """
    text = "".join(tokens)
    at = ["other"] * (len(text) + 1)
    for kind, start, end in lexemes(text):
        at[start:end] = [_CLASSES[kind]] * (end - start)
    found, start = [], 0
    for token in tokens:
        blanks = 0 if token.isspace() else len(token) - len(token.lstrip())
        found.append("other" if _MARKER.fullmatch(token) else at[start + blanks])
        start += len(token)
    return found
