"""The page: one file that opens anywhere, asks for nothing, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from smallview.output.atlas import HUES
from smallview.output.charts import COLOURS
from smallview.output.markup import Markup, escaped, join, tag


@dataclass(frozen=True)
class Section:
    """A part of the page with its heading; `css` is what it needs of its own."""

    title: str
    content: Markup
    css: Markup | None = None

    @property
    def key(self) -> str:
        """Its name in links."""
        return self.title.lower().replace(" ", "-")


def colour_rules() -> Markup:
    """The classes of lines (c0, ...) and of points (h0, ...), and those that single out a class of points."""
    lines = [
        f".c{i}{{color:var(--c{i})}}svg .curve.c{i}{{stroke:var(--c{i})}}svg .end.c{i},svg .last.c{i}{{fill:var(--c{i})}}"
        for i in range(COLOURS)
    ]
    hues = [
        f".h{i}{{color:var(--h{i})}}.atlas:has(#k{i}:checked) .p:not(.h{i}){{opacity:.07;pointer-events:none}}"
        for i in range(HUES + 1)
    ]
    return Markup("".join([*lines, *hues]))


def page(title: str, kind: str, sections: Sequence[Section], made_by: str) -> str:
    """The whole file. title and kind are what stands at its top; the first section needs no heading in the table of contents."""
    place = files("smallview.output")
    # \r: a checkout that changes line ends must not change the hash that the browser takes
    style, script = (place.joinpath(f"report.{end}").read_text("utf-8").replace("\r", "") for end in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    css = Markup(style + colour_rules() + "".join(section.css or "" for section in sections))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", css),
    )
    links = [tag("li", tag("a", section.title, href=f"#{section.key}")) for section in sections]
    body = tag(
        "body",
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag("header", tag("h1", tag("bdi", title)), tag("p", tag("bdi", kind), class_="kind")),
        tag("nav", tag("ul", links), aria_label="Sections"),
        tag(
            "main",
            [
                tag(
                    "section",
                    tag("h2", one.title, id=f"{one.key}-title"),
                    one.content,
                    id=one.key,
                    aria_labelledby=f"{one.key}-title",
                )
                for one in sections
            ],
            id="content",
        ),
        tag("footer", tag("p", made_by)),
        tag("script", Markup(script)),
    )
    return "<!doctype html>\n" + join(Markup('<html lang="en">'), head, body, Markup("</html>\n"))


def paragraphs(*texts: object) -> Markup:
    """Each text as a paragraph."""
    return join([tag("p", escaped(text)) for text in texts])
