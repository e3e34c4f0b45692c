"""Links from pages to files of the repository that are no pages: the site shows those files as well.

A page links to the file itself, `../../jobs/README.md` or `../../astra_mpi/attention.py`, so that the link works in a
checkout too. Every file that is linked, also from a Markdown file shown this way, becomes a page below `repository/`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
#: names of lexers where the ending is another
LEXERS = {"sbatch": "bash", "cu": "cuda", "cuh": "cuda", "yml": "yaml", "sh": "bash", "py": "python"}
_ROOT = "repository"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each file that is linked and is none."""
    root = Path(config.config_file_path).parent
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(pages)
    while pages:
        path = pages.pop()
        for target in _links((root / path).read_text(encoding="utf-8"), path):
            shown = _shown(root, target)
            if shown is None or shown in seen or shown.startswith("docs/"):
                continue
            seen.add(shown)
            pages += [shown] if shown.endswith(".md") else []
            uri = f"{_ROOT}/{shown}" + ("" if shown.endswith(".md") else ".md")
            files.append(File.generated(config, uri, content=_page(root, shown), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository, as links to their pages."""
    root = Path(config.config_file_path).parent
    uri = page.file.src_uri
    path = uri.removeprefix(f"{_ROOT}/") if uri.startswith(f"{_ROOT}/") else f"docs/{uri}"

    def rewritten(match: re.Match[str]) -> str:
        target = _target(match[2], path)
        shown = None if target is None else _shown(root, target)
        if shown is None:
            return match[0]
        here = posixpath.dirname(uri) or "."
        place = shown.removeprefix("docs/") if shown.startswith("docs/") else f"{_ROOT}/{shown}"
        if not place.endswith((".md", ".svg", ".png")):
            place += ".md"
        return f"{match[1]}{posixpath.relpath(place, here)}{match[3]}"

    return LINK.sub(rewritten, markdown)


def _links(text: str, path: str) -> list[str]:
    """Paths from the top of the repository of what a Markdown file at `path` links to."""
    return [target for match in LINK.finditer(text) if (target := _target(match[2], path)) is not None]


def _target(link: str, path: str) -> str | None:
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _shown(root: Path, target: str) -> str | None:
    """The file that is shown for a link's target, a folder's README.md for a folder; None if there is none."""
    if (root / target).is_dir():
        target += "/README.md"
    return target if (root / target).is_file() else None


def _page(root: Path, path: str) -> str:
    text = (root / path).read_text(encoding="utf-8")
    unsearched = "---\nsearch:\n  exclude: true\n---\n"
    if path.endswith(".md"):
        return unsearched + text
    ending = path.rpartition(".")[2]
    return f'{unsearched}# {path}\n\n`````{LEXERS.get(ending, ending)} linenums="1"\n{text}\n`````\n'
