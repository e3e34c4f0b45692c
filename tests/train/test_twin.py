"""The differentiable twin in evaluation mode against the engine on these ranks, whose codes it is given."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.train.codes.codebooks import Codebooks
from astra_mpi.train.codes.sender import Sender
from astra_mpi.train.cuts import coded_places, make_view
from astra_mpi.train.twin import Twin
from helpers.architectures import on_ranks
from helpers.fakes import IMAGE_PARTS, bert_config, gpt2_config, llama_config, model_file, vit_config
from helpers.turns import by_turns

pytestmark = pytest.mark.mpi

FAMILIES = {
    "vit": (vit_config(), None),
    "vit-one-patch": (vit_config(grid=(1, 1), qkv_bias=False, n_classes=0), None),
    "bert": (bert_config(), 17),
    "bert-pooler": (bert_config(pooling="pooler", has_pooler=True, normalize=True), 8),
    "classes": (bert_config(pooling="pooler", has_pooler=True, pad_token=3, word_width=11, n_classes=4), 9),
    "gpt2": (gpt2_config(), 13),
    "llama": (llama_config(rope_type="linear", rope_factor=2.0, attention_bias=True), 13),
}
CODECS = {
    "residual": CodecConfig(stages=3, codebook_size=16),
    "grouped": CodecConfig(kind="grouped", groups=5, codebook_size=10),
    "normed": CodecConfig(site="normed", stages=2, codebook_size=300),
    "kv": CodecConfig(site="kv", kind="grouped", groups=3, codebook_size=16),
    "subspace": CodecConfig(stages=3, codebook_size=16, encoder="subspace"),
    "subspace-kv": CodecConfig(site="kv", stages=2, codebook_size=8, encoder="subspace"),
}
TOLERANCE = 1e-4  # of the largest magnitude: float32 sums in another order


def codes_by_sequence(model):
    """Per block the codes (N, C) of all tokens, sequence by sequence; decoders: zeros where nobody heard them."""
    strategy = model.strategy
    codes = strategy.oracle_terms()["codes"]
    layout = strategy.planned
    return [torch.from_numpy(block[layout.sequence_order].astype(np.int64)) for block in codes]


def twin_answer(file, inputs, mask, counts, codes, first="codes"):
    twin, config = Twin(file.config, file.weights), file.config
    if config.family == "vit":
        keep = np.ones((len(inputs), config.n_class + config.grid[0] * config.grid[1]), bool)
    else:
        keep = np.ones(inputs.shape, bool) if mask is None else mask
    how = dict(causal=twin.causal, sends=codes is not None, counts=counts, sinks=twin.sinks(file.codec.config))
    view = make_view(keep, config.n_class, counts.shape[1], None, **how)
    sender = None
    if codes is not None:
        coded = torch.from_numpy(coded_places(keep, config.n_class, how["sinks"]))
        given = [block[coded[torch.from_numpy(keep[:, config.n_class :])]] for block in codes]
        sender = Sender(Codebooks(file.codec, False, first=first), None if coded.all() else coded, given=given)
    with torch.no_grad():
        found = twin(torch.from_numpy(inputs), view, sender, file.codec.config.site).numpy()
    if not twin.causal:
        return found, sender
    last = keep.sum(axis=1) - 1
    return found[np.arange(len(found)), last], sender


@by_turns(("family", "codec", "cut"), FAMILIES, CODECS, ["even", "uneven"])
def test_twin_equals_engine(comm, family, codec, cut):
    config, n_tokens = FAMILIES[family]
    file = model_file(config, CODECS[codec], seed=3)
    size = comm.Get_size()
    weights = None if cut == "even" else [1.0 + 2 * (r % 3) for r in range(size)]
    model = Model(file, comm, get_backend("numpy", comm), weights)
    model.use("astra")
    model.strategy.record()
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    answer = model(inputs, mask)
    codes = codes_by_sequence(model) if size > 1 else None
    found, sender = twin_answer(file, inputs, mask, model.strategy.planned.counts, codes)
    assert np.abs(found - answer).max() <= TOLERANCE * np.abs(answer).max()
    if sender is not None:
        owners = np.concatenate([np.repeat(np.arange(size), counts) for counts in model.strategy.planned.counts])
        heard = owners < size - config.family.startswith(("gpt2", "llama"))  # nobody hears a decoder's last rank
        assert_own_choice(file, sender, codes, torch.from_numpy(heard))


@pytest.mark.parametrize("part", IMAGE_PARTS)
def test_twin_equals_engine_for_image_encoders(comm, part):
    file = model_file(vit_config(**IMAGE_PARTS[part]), CODECS["kv"], seed=3)
    model = Model(file, comm, get_backend("numpy", comm))
    model.use("astra")
    inputs, mask = random_batch(file.config, 3, seed=1)
    answer = model(inputs, mask)
    codes = codes_by_sequence(model) if comm.Get_size() > 1 else None
    found, _ = twin_answer(file, inputs, mask, model.strategy.planned.counts, codes)
    assert np.abs(found - answer).max() <= TOLERANCE * np.abs(answer).max()


@pytest.mark.parametrize("cut", ["even", "uneven"])
@pytest.mark.parametrize(("family", "codec", "sinks"), [("gpt2", "residual", 7), ("llama", "kv", 1), ("bert", "kv", 4)])
def test_twin_with_sinks_equals_engine(comm, family, codec, sinks, cut):
    """Some of the sequences and slices are shorter than the sinks; an encoder has none."""
    config, n_tokens = FAMILIES[family]
    file = model_file(config, replace(CODECS[codec], sinks=sinks), seed=3)
    weights = None if cut == "even" else [1.0 + 2 * (r % 3) for r in range(comm.size)]
    model = Model(file, comm, get_backend("numpy", comm), weights)
    model.use("astra")
    inputs, mask = random_batch(config, 5, n_tokens, seed=1, ragged=True)
    answer = model(inputs, mask)
    codes = codes_by_sequence(model) if comm.size > 1 else None
    found, _ = twin_answer(file, inputs, mask, model.strategy.planned.counts, codes)
    assert np.abs(found - answer).max() <= TOLERANCE * np.abs(answer).max()


@pytest.mark.parametrize("name", ["gemma2", "smollm3", "olmo2", "stablelm"])
def test_twin_of_other_parts_equals_engine(comm, name):
    """Windows, caps, norms of queries, keys and outputs, blocks side by side, and without positions."""
    config, site = on_ranks()[name]
    file = model_file(config, CodecConfig(site=site, stages=2, codebook_size=16))
    model = Model(file, comm, get_backend("numpy", comm))
    inputs, mask = random_batch(config, 3, 13, seed=1, ragged=True)
    model.use("astra")
    answer = model(inputs, mask)
    counts, codes = model.strategy.planned.counts, codes_by_sequence(model) if comm.size > 1 else None
    found, _ = twin_answer(file, inputs, mask, counts, codes)
    assert np.abs(found - answer).max() <= TOLERANCE * np.abs(answer).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_twin_equals_engine_where_the_first_block_knows_the_inputs(comm, family):
    config, n_tokens = FAMILIES[family]
    file = model_file(config, CODECS["kv" if family == "llama" else "residual"], seed=3)
    model = Model(file, comm, get_backend("numpy", comm))
    model.use("astra:inputs")
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    answer = model(inputs, mask)
    codes = codes_by_sequence(model) if comm.Get_size() > 1 else None
    found, sender = twin_answer(file, inputs, mask, model.strategy.planned.counts, codes, "inputs")
    assert np.abs(found - answer).max() <= TOLERANCE * np.abs(answer).max()
    assert sender is None or len(sender.uses) == len(Codebooks(file.codec, False, first="inputs").used)


def assert_own_choice(file, sender, given, heard):
    """The twin's own search takes the engine's codes but for near-ties, for the tokens `heard` (N,)."""
    parts = len(file.codec.blocks[0].codebooks)
    books = Codebooks(file.codec, False).all
    for b, (book, use) in enumerate(zip(books, sender.uses, strict=True)):
        x = use.rest + book.decode(use.codes)
        engines = given[b // parts].chunk(parts, dim=1)[b % parts]
        same = (book.encode(x).codes == engines).all(dim=1)[heard]
        assert same.double().mean() >= 0.97, (b, float(same.double().mean()))


def test_ragged_rows_do_not_see_padding(comm):
    """A sequence's answer is the same alone as in a batch of longer ones."""
    config = bert_config()
    file = model_file(config, CODECS["residual"])
    inputs, mask = random_batch(config, 4, 11, seed=2, ragged=True)
    together, _ = twin_alone(file, inputs, mask)
    for s in range(4):
        n = int(mask[s].sum())
        alone, _ = twin_alone(file, inputs[s : s + 1, :n], mask[s : s + 1, :n])
        np.testing.assert_allclose(alone[0], together[s], atol=1e-5)


def twin_alone(file, inputs, mask):
    twin = Twin(file.config, file.weights)
    view = make_view(mask, 0, 3, None, causal=False, sends=True)
    content = torch.from_numpy(mask)
    sender = Sender(Codebooks(file.codec, False), None if content.all() else content)
    with torch.no_grad():
        return twin(torch.from_numpy(inputs), view, sender).numpy(), sender
