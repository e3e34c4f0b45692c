r"""What Markdown elsewhere shows by itself and Python's does not: equations, and pipes in code in tables.

Equations, `$..$` and `$$..$$` in LaTeX, become MathML when the site is built. Browsers draw it themselves, so a page
loads no script and no font for it.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_CODE_IN_TABLE = re.compile(r"(?<=<td>).*?(?=</td>)", re.DOTALL)


def on_page_content(page_html: str, page: Any, **_: Any) -> str:
    """The page with its equations converted; a block becomes a box that scrolls where it is too wide."""

    def converted(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        mathml = convert(html.unescape(match[2]), display=display)
        if "\\" in mathml:
            raise PluginError(f"{page.file.src_uri}: latex2mathml does not know all of {match[2]}")
        return f'<{match[1]} class="equation">{mathml}</{match[1]}>'

    page_html = _EQUATION.sub(converted, page_html)
    return _CODE_IN_TABLE.sub(lambda cell: cell[0].replace(r"\|", "|"), page_html)
