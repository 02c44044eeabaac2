"""HTML that cannot be broken out of: an element is built, never pasted; all text in it is escaped, control and direction signs shown."""

from __future__ import annotations

import html

from smallview.settings.fitting import printable

VOID = frozenset(("meta", "br", "img", "input"))


class Markup(str):
    """Text that is HTML already: what `tag` and `join` return, and constants of this package."""

    __slots__ = ()


Child = str | int | Markup | None


def escaped(text: object) -> Markup:
    r"""Any text as HTML: signs of markup as entities, and what is not printable as it is written in Python, bytes of no encoding too.

    Example:
        >>> escaped('<b title="x">') + escaped("a\u202eb\ud8ff\n")
        '&lt;b title=&quot;x&quot;&gt;a\\u202eb\\ud8ff\\n'
    """
    return text if isinstance(text, Markup) else Markup(html.escape(printable(str(text))))


def join(*parts: Child | list[Markup], between: str = "") -> Markup:
    """The parts one after the other, text escaped; lists are taken apart and None is left out."""
    flat = [one for part in parts if part is not None for one in (part if isinstance(part, list) else [part])]
    return Markup(escaped(between).join(escaped(one) for one in flat))


def tag(name: str, /, *children: Child | list[Markup], **attributes: object) -> Markup:
    """An element. Attributes are escaped as text is; `class_` is class, `aria_label` is aria-label; None and False are left out.

    Example:
        >>> tag("p", "1 < 2", tag("b", "&"), class_="a", hidden=True, id=None)
        '<p class="a" hidden>1 &lt; 2<b>&amp;</b></p>'
    """
    told = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escaped(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{told}>" if name in VOID else f"<{name}{told}>{join(*children)}</{name}>")


def name_of(text: str) -> Markup:
    """A name that came with the data: set apart, so that letters of another direction do not turn what stands around it.

    Lines break after the parts of a path.

    Example:
        >>> name_of("cats/1.png")
        '<bdi>cats/<wbr>1.png</bdi>'
    """
    parts = text.split("/")
    return tag("bdi", [join(part, "/", Markup("<wbr>")) for part in parts[:-1]], parts[-1])


def table(
    caption: Child,
    head: list[str],
    rows: list[list[Child]],
    *,
    words: int = 1,
    class_: str = "",
) -> Markup:
    """A table whose first `words` columns are words and the others figures, aligned to the right; the first column names the row."""

    def cells(row: list[Child]) -> list[Markup]:
        first = tag("th", row[0], scope="row")
        return [first, *(tag("td", cell, class_=None if i < words else "n") for i, cell in enumerate(row[1:], 1))]

    titles = [tag("th", title, scope="col", class_=None if i < words else "n") for i, title in enumerate(head)]
    body = tag("tbody", [tag("tr", cells(row)) for row in rows])
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", titles)), body, class_=class_ or None)
    # scrolls by itself on a narrow screen, and by the keyboard
    return tag("div", inner, class_="wide", tabindex="0", role="region", aria_label=_plain(caption))


def _plain(caption: Child) -> str:
    text = str(caption or "table")
    return html.unescape("".join(part.partition(">")[2] if i else part for i, part in enumerate(text.split("<"))))
