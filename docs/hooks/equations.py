r"""Equations as MathML, made when the site is built: `$..$` and `$$..$$` in LaTeX, as the page shows them elsewhere.

Browsers draw MathML themselves, so a page loads no script and no font for it.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(page_html: str, **_: Any) -> str:
    """The page with its equations converted; a block becomes a box that scrolls where it is too wide."""

    def converted(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return f'<{match[1]} class="equation">{convert(html.unescape(match[2]), display=display)}</{match[1]}>'

    return _EQUATION.sub(converted, page_html)
