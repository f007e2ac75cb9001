"""The frame of a self-contained page: head, style, sections with links to them, foot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlops_tasks.report.markup import Child, Markup, element, join
from mlops_tasks.report.style import STYLE


def masthead(
    title: Child, *, eyebrow: Child, lead: Child, tiles: Iterable[Markup], notes: Iterable[Markup] = ()
) -> Markup:
    """What stands above all of a page.

    Args:
        title: what it is about.
        eyebrow: a few words on what was asked, above the title.
        lead: what came of it, in a sentence.
        tiles: the numbers that people look for first.
        notes: what to know before any of it is believed.
    """
    parts = [element("div", eyebrow, class_="eyebrow"), element("h1", title), element("p", lead, class_="lead")]
    inner = element("div", parts, notes, element("dl", tiles, class_="tiles"), class_="inner")
    return element("header", inner)


def document(title: str, *, header: Markup, sections: Mapping[str, tuple[str, Markup]], footer: Child) -> str:
    """A page as HTML.

    Args:
        header: what stands above all.
        sections: by anchor the word in the line of links, and the section itself.
        footer: where all of it comes from.
    """
    links = element(
        "nav",
        element("div", [element("a", word, href=f"#{id}") for id, (word, _) in sections.items()], class_="inner"),
    )
    body = element("main", [section for _, section in sections.values()])
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Nothing of the page can run or fetch anything, should an escape ever be forgotten.
        element("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        element("title", title),
        element("style", STYLE),
    )
    whole = element("html", head, element("body", header, links, body, element("footer", footer)), lang="en")
    return f"{join([Markup('<!doctype html>')])}\n{whole}\n"
