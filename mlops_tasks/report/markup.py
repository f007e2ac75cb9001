"""HTML from Python: elements whose every text and attribute is escaped, because generated code is hostile input.

The page is made of `element` calls only, so that escaping cannot be forgotten; what the page says is left to the modules of the sections.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias


class Markup(str):
    """Text that is HTML already. Only this module and the constant style sheet make any."""

    __slots__ = ()


Child: TypeAlias = "str | int | Iterable[Child] | None"

_VOID = frozenset({"br", "input", "meta"})


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """One element. A child that is no `Markup` is text and is escaped; None is left out.

    Args:
        tag: a constant of ours.
        children: texts, elements, or nested iterables of them.
        attributes: `class_` is `class`, other underscores are hyphens; None and False are left out, True has no value.

    >>> element("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    given = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{given}>")
    return Markup(f"<{tag}{given}>{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Markup:
    """Children one after another, with no element around them."""
    return Markup("".join(_text(child) for child in children))


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int):
        return html.escape(str(child))
    return join(child)


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{round(value, 2):g}" if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(text)}"'
