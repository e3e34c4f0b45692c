"""Every setting of a checkpoint folder honoured, or refused by name: a selection of jobs/checks/differential.py, and
what it takes for granted."""

import dataclasses
import importlib
import sys

import differential
import differential_config
import differential_docs
import numpy as np
import pytest
import torch
import transformers
from differential import MISSING

from astra_mpi.checkpoint.config import ACTIVATIONS
from astra_mpi.checkpoint.reference import ASIDE, BASE, GUARDED, HARMLESS
from astra_mpi.convert import generation as hf_generation
from astra_mpi.errors import InputError
from astra_mpi.kernels import reference as kernels
from astra_mpi.models import CHECKPOINTS, FAMILIES
from astra_mpi.models.encoders import ENCODERS
from astra_mpi.models.vision.readers import READERS

CLASSES = {name: transformers.AutoConfig.for_model(name).__class__ for name in CHECKPOINTS}
#: of these, all keys that count are tried
WHOLE = ("bert", "vit", "gpt2", "llama", "generation")
#: encoders of texts beside BERT, most of whose keys BERT's table has shown
TEXTS = {"bert-classifier", *(reader.model_type for reader in ENCODERS)}
#: read as roberta's are, by the same code
ALIKE = ("xlm-roberta", "camembert")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_is_stated_of_transformers(name):
    """Fields and defaults of its configuration classes, and the names of its models."""
    stated, theirs = CHECKPOINTS[name].reference, CLASSES[name]
    fields = {field.name: field.default for field in dataclasses.fields(theirs)}
    assert {**BASE, **stated.fields} == fields
    assert stated.aliases == theirs.attribute_map
    module = importlib.import_module(theirs.__module__.replace("configuration", "modeling"))
    assert set(stated.architectures) <= set(module.__all__)


#: of a class or a call, not of config.json
INTERNAL = {"sub_configs", "sub_configs_defaults", "is_heterogeneous", "model_type", "output_loading_info"}
INTERNAL |= {"default_theta", "default_rope_type", "ignore_keys_at_rope_validation"}


@pytest.mark.parametrize("table", [name for name in differential_config.TABLES if name not in ALIKE])
def test_transformers_reads_nothing_that_is_not_known(table, tmp_path):
    made = differential_config.TABLES[table]()
    made.make(tmp_path)
    stated = made.family.reference
    known = {*stated.fields, *stated.guarded, *stated.harmless, *stated.aliases, *BASE, *GUARDED, *HARMLESS, *ASIDE}
    assert made.read_by_reference(tmp_path) - known - made.read_here(tmp_path) - INTERNAL == set()


def test_activations_are_those_that_compute_the_same():
    x = torch.linspace(-12, 12, 401)[None]
    ours = {name: kernels.activate(x.numpy().copy(), None, name)[0] for name in set(ACTIVATIONS.values())}
    for name in transformers.activations.ACT2FN:
        with torch.no_grad():
            theirs = transformers.activations.ACT2FN[name](x)[0].float().numpy()
        equal = {own for own, values in ours.items() if np.abs(values - theirs).max() < 1e-5}
        assert equal == ({ACTIVATIONS[name]} if name in ACTIVATIONS else set()), name


def test_settings_of_generation_are_all_known():
    known = {*hf_generation.ABSENT, *hf_generation.ABSENT_SAMPLING, *hf_generation.OWN, *hf_generation.HARMLESS}
    assert {*vars(transformers.GenerationConfig())} - {"_original_object_hash"} <= known


def reads_itself(table, key):
    """Whether a reader of a family's checkpoints says of this key what its family does not; and two that count."""
    stated, shared = table.family.reference, FAMILIES["vit"].reference
    said = ({**ref.guarded, **ref.harmless, **ref.fields} for ref in (stated, shared))
    mine, theirs = (known.get(key, ...) for known in said)
    return (mine is not ... and mine != theirs) or key in ("layer_norm_eps", "num_attention_heads")


def known_of(table):
    """Keys that are tried with another family already."""
    of_kin = isinstance(table, differential_config.ArchitectureTable)
    return CHECKPOINTS["llama"].reference.fields if of_kin else ()


def selection(table):
    """Of every key the first value and none, of those with more to say all; what is harmless in any file once, and what
    one table has shown in the others only where their class has a field of that name."""
    known = known_of(table)
    every = ("tie_word_embeddings", "rope_scaling", "id2label", "num_labels", "eos_token_id", "vision_config")
    seen = set()
    for change in (change for change in table.changes() if change.key not in known):
        if table.name in READERS and not reads_itself(table, change.key):
            continue
        if change.key in ("text_config", "vision_config") and not isinstance(change.value, dict | int):
            continue  # a model of full size on the other side
        first = (change.key, repr(change.beside)) not in seen
        seen.add((change.key, repr(change.beside)))
        fields = () if table.name.endswith("-classifier") else table.family.reference.fields
        if table.name in TEXTS and change.key not in {*fields, *table.own}:
            continue
        if change.key in HARMLESS and change.key not in table.family.reference.fields and table.name != "bert":
            continue
        if first or change.key in every or change.value is MISSING:
            yield change


#: readers whose settings are tried here; the job has all
TRIED = ("deit", "dinov2_with_registers", "clip", "siglip_vision_model")
NOT_HERE = {*ALIKE, *READERS} - {*TRIED}


@pytest.mark.parametrize("name", [name for name in differential_config.TABLES if name not in NOT_HERE])
def test_settings(name):
    table = differential_config.TABLES[name]()
    rows = list(differential.check(table, selection))
    wrong = [f"{row.change}: {row.detail}" for row in rows if not row.right]
    assert not wrong, "\n".join(wrong)
    counted = sum(row.verdict == "honoured" for row in rows) > (name in WHOLE)
    assert rows and (known_of(table) or name.endswith("-classifier") or counted)


class Toy:
    """A table of one key that the reference answers as `moved` says, and that is refused by `said`."""

    def __init__(self, said, moved):
        self.said, self.moved = said, moved

    def expected(self, folder):
        return np.ones(2) + self.moved

    def got(self, folder):
        raise InputError(self.said)


@pytest.mark.parametrize(
    ("said", "moved", "verdict"),
    [
        ("config.json: n_layer = 3 is not supported", 1, "refused"),
        ("config.json: n_layer = 3 is not supported", 0, differential.NEEDLESS),
        ("config.json: n_layers = 3 is not supported", 1, "WRONG"),
        ("config.json: text_n_layer = 3 is not supported", 0, "WRONG"),
    ],
)
def test_a_refusal_names_the_key_itself(tmp_path, said, moved, verdict):
    change = differential.Change("n_layer", 3)
    assert differential.judge(Toy(said, moved), change, tmp_path, np.ones(2)).verdict == verdict


def test_all_is_all(monkeypatch, capsys):
    """Without arguments every part runs, and a finding of any is exit code 1."""
    assert set(differential.parts()) == {*differential_config.TABLES, "text", "images"}
    found = {"llama": 0, "text": 0, "images": 0}
    monkeypatch.setattr(differential, "parts", lambda: {name: lambda name=name: found[name] for name in found})
    monkeypatch.setattr(differential, "silence", lambda: None)
    monkeypatch.setattr(sys, "argv", ["differential.py"])
    assert differential.main() == 0
    for name in found:
        found[name] = 2
        assert differential.main() == 1 and f'"{name}": 2' in capsys.readouterr().out
        found[name] = 0
    found["text"] = 1
    monkeypatch.setattr(sys, "argv", ["differential.py", "images"])
    assert differential.main() == 0


def test_the_tables_of_the_docs_are_up_to_date():
    made = differential_docs.PAGE.read_text().split(differential_docs.BEGIN)[1].split(differential_docs.END)[0]
    assert made == "\n" + differential_docs.tables(), "run python jobs/checks/differential.py --docs"
