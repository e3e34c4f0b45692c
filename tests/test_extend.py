"""docs/extend.md: its examples, as they stand there, put into a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from astra_mpi import load
from astra_mpi.files.modelfile import write_model
from helpers.fakes import bert_config, model_file
from helpers.inputs import tokenizer

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
LOGITS = """
import numpy as np
from mpi4py import MPI
import astra_mpi
for strategy in ("single", "sp"):
    model = astra_mpi.load("seed.h5", comm=MPI.COMM_WORLD, strategy=strategy)
    answer = model(np.load("ids.npy"), np.load("mask.npy"))
    if MPI.COMM_WORLD.rank == 0:
        np.save(f"{strategy}.npy", answer)
"""


def fenced(language, path):
    """The block of the page that says it is (of) this file."""
    found = re.findall(rf"^```{language}\n# {re.escape(path)}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(found) == 1, f"docs/extend.md has {len(found)} blocks of {path}"
    return found[0]


def changed(text, diff):
    """`text` with the runs of - and + lines of a diff taken in turn; each run of - lines must be there, once."""
    for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", diff, re.MULTILINE):
        before, after = (re.sub(r"^[-+]", "", part, flags=re.MULTILINE) for part in (old, new))
        assert text.count(before) == 1, f"docs/extend.md changes a line that is not there: {before}"
        text = text.replace(before, after)
    return text


@pytest.fixture
def run(tmp_path):
    """Commands in a folder beside a copy of the package; the kernels are the original, compiled already."""
    (tmp_path / "package").mkdir()
    package = tmp_path / "package" / "astra_mpi"
    shutil.copytree(ROOT / "astra_mpi", package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "package" / "kernels").symlink_to(ROOT / "kernels")
    beside = Path(sys.executable).parent
    env = os.environ | {"PYTHONPATH": str(tmp_path / "package"), "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}

    def call(*command, added, table):
        """added: the new file; table: the file that gets its entry."""
        (package.parent / added).write_text(fenced("python", added))
        file = ROOT / table
        (package.parent / table).write_text(changed(file.read_text(encoding="utf-8"), fenced("diff", table)))
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False, input=""
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call.folder = tmp_path
    return call


def commands(section):
    """The bash block of a section of the page."""
    (text,) = re.findall(r"^```bash\n(.*?)^```$", PAGE.split(f"## {section}\n")[1].split("\n## ")[0], re.DOTALL | re.M)
    return "set -euo pipefail\n" + text


def outputs(path):
    """The vectors of a job."""
    with h5py.File(path) as file:
        return np.asarray(file["outputs/embedding"])


def test_strategy(run):
    files = {"added": "astra_mpi/strategies/normed.py", "table": "astra_mpi/strategies/__init__.py"}
    printed = run("bash", "-c", commands("A strategy"), **files)
    line = next(line for line in printed.splitlines() if line.startswith("normed "))
    n_bytes, formula, verdict = line.split()[-3:]
    assert verdict == "agrees" and int(n_bytes) == int(formula) > 0


def test_family(run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    files = {"added": "astra_mpi/models/decoders/seed_oss.py", "table": "astra_mpi/models/decoders/__init__.py"}
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 2, "vocab_size": 61, "head_dim": 10}
    config = transformers.SeedOssConfig(**sizes, max_position_embeddings=24, attention_out_bias=True)
    rival = transformers.SeedOssForCausalLM(config).eval()
    with torch.no_grad():
        for weight in rival.parameters():  # biases are zeros and norms ones, where a mistake would not show
            weight.add_(0.1 * torch.randn_like(weight))
    rival.save_pretrained(run.folder / "seed-folder")
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 61, (3, 20)), np.arange(20) < np.array([[20], [7], [1]])
    np.save(run.folder / "ids.npy", ids)
    np.save(run.folder / "mask.npy", mask)
    (run.folder / "logits.py").write_text(LOGITS)
    run("bash", "-c", commands("A family") + "mpirun -n 2 python logits.py\n", **files)
    with torch.no_grad():
        logits = rival(torch.tensor(ids), attention_mask=torch.tensor(mask).long()).logits.numpy()
    expected = logits[np.arange(3), mask.sum(axis=1) - 1]  # of each text's last token
    for name in ("single", "sp"):
        got = np.load(run.folder / f"{name}.npy")
        np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max(), err_msg=name)


def test_weight_format(run):
    files = {"added": "astra_mpi/device/formats/float8.py", "table": "astra_mpi/device/formats/__init__.py"}
    printed = run("bash", "-c", commands("A weight format"), **files)
    assert "float8 for float32" in printed and "as rounding explains" in printed
    verdicts = dict(re.findall(r"^(single|tp) .* (\S+)$", printed, re.MULTILINE))
    assert verdicts == {"single": "agrees", "tp": "agrees"}
    exact = load(run.folder / "bert.h5", comm=MPI.COMM_SELF, strategy="single")(np.load(run.folder / "ids.npy"))
    vectors = outputs(run.folder / "vectors.h5")
    close = (vectors * exact).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(exact, axis=1)
    assert close.min() > 0.99 and close.max() < 0.99999


def test_codec_kind(run):
    files = {"added": "astra_mpi/codec/kinds/gain_shape.py", "table": "astra_mpi/codec/config.py"}
    printed = run("bash", "-c", commands("A codec kind"), **files)
    line = next(line for line in printed.splitlines() if line.startswith("astra "))
    n_bytes, formula, verdict = line.split()[-3:]
    assert verdict == "agrees" and int(n_bytes) == int(formula) > 0
    assert "gain-shape" in printed


def test_input_kind(run):
    """The vectors of a JSON array's texts are those of the same texts in a .txt file."""
    config = bert_config(vocab_size=6)
    write_model(run.folder / "model.h5", replace(model_file(config), tokenizer=tokenizer()))
    (run.folder / "texts.txt").write_text("b\na b c\nd\ne e\n")
    files = {"added": "astra_mpi/inputs/kinds/json_array.py", "table": "astra_mpi/decks/input_kinds.py"}
    same = "astra-mpi run deck.toml input.path=texts.txt input.dataset=text output.path=same.h5\n"
    run("bash", "-c", commands("An input kind") + same, **files)
    vectors, wanted = outputs(run.folder / "vectors.h5"), outputs(run.folder / "same.h5")
    assert wanted.shape == (4, config.d_model) and len(np.unique(wanted, axis=0)) == 4
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
