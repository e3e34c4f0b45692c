"""Predicted, scalar and graded codes in the twin: states, keys, values and answers are the oracle's, gradients those of
what is computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.oracle.far import Quantised
from astra_mpi.oracle.layers import linear
from astra_mpi.oracle.predicted import Predicted
from astra_mpi.oracle.reference import oracle
from astra_mpi.train.codes.codebooks import Codebooks
from astra_mpi.train.codes.sender import sender_for
from astra_mpi.train.cuts import coded_places, draw_cut, make_view
from astra_mpi.train.losses import same_distribution, same_distribution_by_rows
from astra_mpi.train.twin import Twin
from helpers.fakes import bert_config, llama_config, model_file

FAMILIES = {
    "decoder": (llama_config(n_layers=4), 23),
    "encoder": (bert_config(n_layers=4), 17),
    "encoder-cls": (bert_config(n_layers=4, pooling="cls"), 14),
}
NEAR = dict(near=2, near_stages=2)
CODECS = {
    "predicted": CodecConfig(site="normed", stages=(0, 3, 0, 2), codebook_size=16, predict="linear", inputs=2, **NEAR),
    "predicted-subspace": CodecConfig(site="normed", stages=3, codebook_size=9, predict="linear", encoder="subspace"),
    "late": CodecConfig(site="normed", stages=(0, 2, 3, 2), codebook_size=16, predict="linear", awaited=(2,)),
    "predicted-scalar": CodecConfig(site="normed", kind="scalar", vector_bits=21, codebook_size=16, predict="linear"),
    "scalar": CodecConfig(site="kv", kind="scalar", vector_bits=30, codebook_size=16),
    "graded": CodecConfig(site="kv", stages=((1, 3), 0, (2, 0), 2), codebook_size=9, **NEAR),
}
TOLERANCE = 1e-4  # of the largest magnitude: float32 against float64


def twin_pass(file, tokens, counts, view_changes=None, given=None, learns=False, recompute=False, late=False):
    """-> (answer of one sequence, its sender, what far ranks saw of each block's parts)."""
    config, codec = file.config, file.codec
    twin, books = Twin(config, file.weights), Codebooks(codec, learns, late=late)
    twin.recomputes = recompute
    keep, sinks = np.ones((1, len(tokens)), bool), twin.sinks(codec.config)
    options = dict(causal=twin.causal, sends=True, counts=counts[None], sinks=sinks)
    view = replace(make_view(keep, config.n_class, len(counts), None, **options), **(view_changes or {}))
    sender = sender_for(books, view, coded_places(keep, config.n_class, sinks), twin.causal, given=given)
    seen = []

    class Watched:
        carried = property(lambda self: sender.carried, lambda self, value: setattr(sender, "carried", value))

        def __call__(self, i, parts):
            seen.append(sender(i, parts))
            return seen[-1]

    answer = twin(torch.from_numpy(tokens)[None], view, Watched(), codec.config.site)
    return answer[0], sender, seen, twin


def cut_at_random(n_tokens, seed):
    size, slices = draw_cut((2, 3, 5), True, 0, seed)
    counts = np.floor(np.array(slices) * n_tokens).astype(np.int64)
    counts[-1] += n_tokens - counts.sum()
    return size, counts


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_oracle(family, codec, seed, monkeypatch):
    config, n_tokens = FAMILIES[family]
    sinks = 2 if family == "decoder" else 0
    file = model_file(config, replace(CODECS[codec], sinks=sinks), seed=seed)
    (tokens,), _ = random_batch(config, 1, n_tokens, seed=seed)
    size, counts = cut_at_random(n_tokens - config.n_class, seed)
    owner = np.repeat(np.arange(size), counts)
    wanted_seen = []
    kind, late = Predicted if file.codec.config.predicts else Quantised, codec == "late"

    def watched(self, i, *parts, call=kind.__call__):
        wanted_seen.append(call(self, i, *parts))
        return wanted_seen[-1]

    monkeypatch.setattr(kind, "__call__", watched)
    want = oracle(config, file.weights, tokens, owner, size, codec=file.codec, sinks=sinks, late=late)
    coded = np.arange(len(owner)) >= sinks
    given = [torch.from_numpy(codes[coded]) for codes in want.codes]
    with torch.no_grad():
        answer, sender, seen, _ = twin_pass(file, tokens, counts, given=given, late=late)
        plain, _, _, twin = twin_pass(file, tokens, counts, {"slices": ()}, given, late=late)
    found = answer.numpy()
    target = want.hidden if family == "decoder" else want.output
    assert np.abs(found - target).max() <= TOLERANCE * np.abs(target).max()
    torch.testing.assert_close(plain, answer, atol=1e-5, rtol=1e-5)
    assert len(seen) == len(wanted_seen) == config.n_layers
    for i, (mine, its) in enumerate(zip(seen, wanted_seen, strict=True)):
        for a, b in zip(mine, its, strict=True):
            assert np.abs(a[0].numpy()[coded] - b[coded]).max() <= TOLERANCE * np.abs(b).max(), i
        if file.codec.config.site == "normed":
            for name in "kv":
                b = linear(its[0][coded], file.weights, f"blocks.{i}.{name}")
                a = twin._linear(mine[0][0], f"blocks.{i}.{name}").numpy()[coded]
                assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max()
    own = sender.codebooks.used
    for book, use in zip(own, sender.uses, strict=True):  # its own search takes the same codes but for near-ties
        x = use.rest + book.decode(use.codes)
        same = (book.codes(x, sender.near) == use.codes).all(dim=1)
        assert same.double().mean() >= 0.9


@pytest.mark.parametrize("codec", ["predicted", "predicted-scalar", "graded", "scalar"])
def test_gradients(codec):
    """Of all that learns: the same where blocks are computed again. Of predicted codes, which are taken as they are,
    they are the loss's differences along a direction at random."""
    config, n_tokens = FAMILIES["decoder"]
    file = model_file(config, replace(CODECS[codec], sinks=1), seed=2)
    (tokens,), _ = random_batch(config, 1, n_tokens, seed=2)
    _, counts = cut_at_random(n_tokens, 3)
    with torch.no_grad():
        uses = [use.codes for use in twin_pass(file, tokens, counts)[1].uses]
    parts = file.codec.config.n_books
    given = [torch.cat(uses[i : i + parts], dim=1) for i in range(0, len(uses), parts)]
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(n_tokens, config.vocab_size, generator=generator)

    def loss(of, recompute=False):
        answer, sender, _, _ = twin_pass(replace(file, codec=of), tokens, counts, None, given, True, recompute)
        return same_distribution(answer, target, n_tokens), sender

    gradients = []
    for recompute in (False, True):
        found, sender = loss(file.codec, recompute)
        (found + 1e-2 * sender.commitment).backward()
        learned = sender.codebooks.learned
        gradients.append([tensor.grad for _, tensor, _, _ in learned])
    for (name, *_), a, b in zip(learned, *gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4, msg=name)
    if not file.codec.config.predicts:
        return
    found, sender = loss(file.codec)
    found.backward()
    books, ends = sender.codebooks, []
    shifts = [torch.rand(t.shape, generator=generator) * t.grad.sign() * scale for _, t, scale, _ in books.learned]
    by_gradient = sum(float((t.grad * shift).sum()) for (_, t, _, _), shift in zip(books.learned, shifts, strict=True))
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for (_, tensor, _, _), shift in zip(books.learned, shifts, strict=True):
                tensor += step * shift
            books.settle()
            ends.append(float(loss(books.codec)[0]))
    assert by_gradient == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-2)


def test_divergence_by_rows_is_that_of_all_logits(monkeypatch):
    monkeypatch.setattr("astra_mpi.train.losses.LOGITS", 40)
    generator = torch.Generator().manual_seed(1)
    head, exact, found = (torch.randn(n, 6, generator=generator) for n in (11, 9, 9))
    gradients = []
    for by_rows in (False, True):
        rows = found.clone().requires_grad_()
        if by_rows:
            loss = same_distribution_by_rows(rows, exact, lambda x: x @ head.T, 7, 11)
        else:
            loss = same_distribution(rows @ head.T, exact @ head.T, 7)
        (3 * loss).backward()
        gradients.append((loss.detach(), rows.grad))
    torch.testing.assert_close(gradients[0], gradients[1])
