"""The code blocks of a Markdown page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes
    ----------
    page : Path
    line : int
        Where its text begins, for tracebacks.
    language : str
    text : str
    not_run : str or None
        The reason, where a comment right above says that it is not run.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Read the blocks of a page, in order; directives of the documentation are none."""
    found, comment = [], None
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence" and not token.info.startswith("{"):
            assert token.map is not None
            found.append(Block(page, token.map[0] + 2, token.info.strip(), token.content, comment))
        match = _NOT_RUN.fullmatch(token.content.strip()) if token.type == "html_block" else None
        comment = match["reason"] if match else None
    return found
