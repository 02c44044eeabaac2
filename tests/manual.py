"""The pages of the documentation taken apart: fenced blocks, the commands in them, running text, names, links and anchors."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
}
LINKED = {
    p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for p in (*ROOT.glob("*.md"), *ROOT.glob("examples/*.md"))
} | PAGES
SHELL = ("sh", "bash", "console")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is the page's line where its text begins."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = PAGES[page]
    return [Block(page, text.count("\n", 0, m.start(2)) + 1, m[1], m[2]) for m in _FENCE.finditer(text)]


def commands(block: Block) -> list[str]:
    """The commands of a shell block: continued lines joined, comments dropped; of a console block what stands behind the prompt.

    A block that begins with #! is one script, and one command.
    """
    if block.text.startswith("#!"):
        return [block.text]
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.kind == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [_bare(line) for line in lines if shlex.split(line, comments=True)]


def _bare(line: str) -> str:
    """A line without the comment behind it, quotes as they stand."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars="")
    lexer.whitespace_split, lexer.commenters = True, "#"
    return " ".join(lexer)


def indented(page: str) -> list[str]:
    """The lines of code of a page that stand four spaces in, outside fences."""
    return [
        line[4:] for chunk in _INDENTED.findall(_FENCE.sub("\n", PAGES[page])) for line in chunk.splitlines() if line.strip()
    ]


def prose(page: str, pages: dict[str, str] = PAGES) -> str:
    """A page without its code blocks."""
    return _INDENTED.sub("\n", _FENCE.sub("\n", pages[page]))


def spans(page: str) -> list[str]:
    """What stands as code within the running text."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def links(page: str) -> list[str]:
    """Where a page's links point."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page, LINKED))


def anchors(page: str) -> set[str]:
    """The names that headings of a page can be reached by, as on GitHub."""
    heads = re.findall(r"^#+ +(.+?) *$", _FENCE.sub("\n", LINKED[page]), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
