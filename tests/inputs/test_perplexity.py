"""Perplexity by sliding windows, against plain PyTorch."""

from pathlib import Path

import numpy as np
import pytest

import astra_mpi
from astra_mpi.decks.deck import load_deck
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile, write_model
from astra_mpi.inputs.windows import WindowSource
from astra_mpi.job import runner
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file
from helpers.tokenizers import TEXT, byte_tokenizer


def make_job(folder, config, strategy, **task):
    file = model_file(config)
    tokenizer = byte_tokenizer()
    write_model(folder / "model.h5", ModelFile(config, file.weights, file.codec, tokenizer, {"max_tokens": 12}))
    (folder / "text.txt").write_text(TEXT)
    lines = "".join(f"{key} = {value}\n" for key, value in task.items())
    (folder / "deck.toml").write_text(
        f'[model]\npath = "model.h5"\n[input]\npath = "text.txt"\nkind = "text"\n[task]\nname = "perplexity"\n{lines}'
        f'[parallel]\nstrategy = "{strategy}"\n[run]\nbatch = 3\n[output]\npath = "out.h5"\n'
    )
    return load_deck(folder / "deck.toml")


@pytest.mark.parametrize(
    ("n", "window", "stride"), [(10, 4, 2), (11, 4, 3), (4, 4, 4), (3, 8, 1), (9, 4, 4), (7, 3, 1)]
)
def test_every_token_is_scored_once(n, window, stride):
    source = WindowSource(np.arange(n), window, stride, "")
    scored = [row[k:] for row, k in zip(source.ids, source.n_context, strict=True)]
    assert np.array_equal(np.concatenate(scored), np.arange(n))
    assert all(0 < len(row) <= window for row in source.ids)
    assert all(len(part) for part in scored)


def torch_perplexity(model, ids, window, stride):
    """The loop of the `transformers` documentation, every window's loss by torch."""
    import torch

    lost, count, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        inputs = torch.tensor(ids[begin:end])[None]
        targets = inputs.clone()
        targets[:, : previous - begin] = -100
        with torch.no_grad():
            logits = model(inputs).logits[0, :-1]
        kept = targets[0, 1:] != -100
        lost += torch.nn.functional.cross_entropy(logits[kept], targets[0, 1:][kept], reduction="sum").item()
        count, previous = count + int(kept.sum()), end
        if end == len(ids):
            break
    return np.exp(lost / count), count


def transformers_gpt2(transformers):
    shape = dict(n_embd=12, n_head=2, n_layer=2, n_positions=12, vocab_size=20, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))


def transformers_llama(transformers):
    """Two query heads per key head, an untied head, Llama 3's scaling of rotary positions."""
    shape = dict(hidden_size=16, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, vocab_size=20)
    rope = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_theta=100.0)
    shape |= dict(intermediate_size=24, max_position_embeddings=12, bos_token_id=0, eos_token_id=0)
    shape["rope_parameters"] = rope | {"original_max_position_embeddings": 6}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))


@pytest.mark.parametrize("stride", [5, 12])
@pytest.mark.parametrize("make", [transformers_gpt2, transformers_llama])
def test_single_equals_pytorch(tmp_path, make, stride):
    import torch
    import transformers
    from mpi4py import MPI

    from astra_mpi.convert.hugging_face import convert

    torch.manual_seed(0)
    theirs = make(transformers).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(byte_tokenizer())
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')  # as it is
    deck = make_job(tmp_path, gpt2_config(), "single", stride=stride)
    write_model(tmp_path / "model.h5", convert(tmp_path / "hf")[0])
    model = astra_mpi.load(str(tmp_path / "model.h5"), comm=MPI.COMM_SELF, strategy="single")
    metrics = runner.run(deck, model, MPI.COMM_SELF)["metrics"]
    letters = sorted(set(TEXT))
    want, count = torch_perplexity(theirs, [letters.index(letter) for letter in TEXT], 12, stride)
    n_unseen = 1 if stride < 12 else -(-len(TEXT) // 12)  # the first token of a window without context
    assert metrics["scored_tokens"] == count == len(TEXT) - n_unseen
    assert metrics["perplexity"] == pytest.approx(want, rel=1e-5)


@pytest.mark.mpi
@pytest.mark.parametrize("make", [gpt2_config, llama_config])
def test_strategies(comm, mpi_tmp_path, make):
    """Exact ones agree with one rank; astra differs where there are several; every rank has the summary."""
    folder, found = Path(mpi_tmp_path), {}
    for strategy in ("single", "sp", "astra"):
        if comm.rank == 0:
            make_job(folder, make(), strategy, stride=5)
        comm.Barrier()
        deck = load_deck(folder / "deck.toml", ["run.resume=false"])
        model = astra_mpi.load(str(deck.model.path), comm=comm, strategy=strategy)
        found[strategy] = runner.run(deck, model, comm)["metrics"]
    assert found["single"]["scored_tokens"] == found["astra"]["scored_tokens"] == len(TEXT) - 1
    assert found["sp"]["perplexity"] == pytest.approx(found["single"]["perplexity"], rel=1e-5)
    different = abs(found["astra"]["perplexity"] / found["single"]["perplexity"] - 1) > 1e-4
    assert different == (comm.size > 1)


def test_what_does_not_fit_is_named(tmp_path):
    from mpi4py import MPI

    deck = make_job(tmp_path, gpt2_config(), "single", stride=13)
    model = astra_mpi.load(str(tmp_path / "model.h5"), comm=MPI.COMM_SELF, strategy="single")
    with pytest.raises(InputError, match=r"task\.stride = 13 leaves out tokens between windows of 12"):
        runner.run(deck, model, MPI.COMM_SELF)
    deck = load_deck(tmp_path / "deck.toml", ["task.name=embed"])
    with pytest.raises(InputError, match="a gpt2 model; give perplexity or generate"):
        runner.run(deck, model, MPI.COMM_SELF)
    file = model_file(bert_config())
    write_model(tmp_path / "bert.h5", ModelFile(bert_config(), file.weights))
    bert = astra_mpi.load(str(tmp_path / "bert.h5"), comm=MPI.COMM_SELF, strategy="single")
    with pytest.raises(InputError, match="predicts no tokens"):
        bert.nll(np.zeros((1, 2), np.int64), None, np.zeros(1, np.int64))
