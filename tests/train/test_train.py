"""`astra-mpi train`: what it writes, on one process and on several, stopped and continued; wrong input."""

import json
import resource
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mpi4py import MPI

import astra_mpi
from astra_mpi.cli import main
from astra_mpi.errors import AstraError, InputError
from astra_mpi.files.codecfile import read_codebooks
from astra_mpi.files.modelfile import read_model
from astra_mpi.train import losses, start
from astra_mpi.train.data import Order, hold_out
from astra_mpi.train.deck import load_train_deck
from astra_mpi.train.log import Log, read_log
from astra_mpi.train.loop import Run
from astra_mpi.train.optimise import schedule
from helpers.training import TEXT, small_deck, write_deck, write_images, write_small


def run(deck, comm=MPI.COMM_SELF):
    return Run(deck, comm, 1, "deck.toml")()


def refused(capsys, deck, *words):
    """The command ends with exit code 2 and one sentence that has all `words`."""
    assert main(["train", str(deck)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("astra-mpi:")]
    assert all(word in line for word in words), line


def test_codebooks_alone_by_distillation(tmp_path):
    """The base stays, far embeddings come closer to exact ones, the engine loads the codebooks and agrees."""
    deck = small_deck(tmp_path, "bert", output_codebooks_only=True, train_learn="codebooks", train_steps=40)
    deck = replace(deck, output=replace(deck.output, dtype="float16"))
    figures = run(deck)
    first = read_log(deck.beside(".jsonl"))[0]
    assert figures["cosine"] > first["cosine"]
    base = read_model(deck.model.path)
    codec = read_codebooks(deck.output.path, base.digest)
    assert codec.config.stages == 2 and codec.config.encoder == "exact"
    model = astra_mpi.load(str(deck.model.path), comm=MPI.COMM_SELF, codebooks=str(deck.output.path))
    assert model(np.arange(6)[None]).shape == (1, 24)


@pytest.mark.parametrize("rate, worse", [(30.0, True), (0.05, False)])
def test_says_if_codes_have_become_worse(tmp_path, capsys, rate, worse):
    deck = small_deck(tmp_path, "bert", output_codebooks_only=True, train_learn="codebooks", train_codebook_lr=rate)
    figures, first = run(deck), read_log(deck.beside(".jsonl"))[0]
    assert (figures["cosine"] < first["cosine"]) == worse
    said = f"cosine {figures['cosine']:.4g} is worse than {first['cosine']:.4g} before training: lower train.lr"
    assert (said in capsys.readouterr().err) == worse


@pytest.mark.parametrize(
    "grows, values, said",
    [(False, (9, 7, 8), ""), (False, (5, 4, 6), "step 1 had 4"), (True, (5, 4.9999), ""), (True, (np.nan, 4), "")],
)
def test_a_log_knows_which_figures_are_worse(tmp_path, grows, values, said):
    log = Log(tmp_path / "a.jsonl", tmp_path / "a.png", 0, 2, "figure", grows)
    for step, value in enumerate(values):
        log.write({"step": step, "figure": float(value)})
    assert log.worsened().endswith(said) and bool(log.worsened()) == bool(said)


@pytest.mark.parametrize("learn", ["codebooks", "all"])
def test_first_block_from_the_inputs_leaves_its_codebooks(tmp_path, learn):
    untrained = small_deck(tmp_path, "bert", train_learn="codebooks", train_steps=1, train_codebook_lr=1e-30)
    run(untrained)
    before = read_model(untrained.output.path).codec
    deck = small_deck(tmp_path, "bert", "inputs", codec_first="inputs", train_learn=learn, codec_revive=0.0)
    run(deck)
    after = read_model(deck.output.path).codec
    pairs = [(a.codebooks[0].entries, b.codebooks[0].entries) for a, b in zip(before.blocks, after.blocks, strict=True)]
    assert np.array_equal(*pairs[0]) and not np.allclose(*pairs[1], atol=1e-6)


def test_whole_model_learns_labels(tmp_path):
    deck = small_deck(tmp_path, "vit", train_steps=150, train_lr=1e-2, codec_kind="grouped", codec_groups=3)
    figures = run(deck)
    log = read_log(deck.beside(".jsonl"))
    losses_found = [record["loss"] for record in log if "loss" in record]
    assert np.mean(losses_found[-10:]) < 0.8 * np.mean(losses_found[:5])
    assert 0 <= figures["accuracy"] <= 1 and "accuracy_exact" in figures
    assert deck.beside(".png").stat().st_size > 1000
    file = read_model(deck.output.path)
    assert file.provenance["train_steps"] == "150 of 150"
    assert file.digest != read_model(deck.model.path).digest
    assert astra_mpi.load(str(deck.output.path), comm=MPI.COMM_SELF)(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 3)


def test_norms_learn_and_nothing_else(tmp_path):
    deck = small_deck(tmp_path, "vit", train_learn="norms", train_loss="distill")
    run(deck)
    before, after = read_model(deck.model.path).weights, read_model(deck.output.path).weights
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "norm" in name}


def test_language_model_from_nothing(tmp_path):
    """Vocabulary, model and perplexity of a text; the engine's perplexity is that of the log."""
    (tmp_path / "text.txt").write_text(TEXT)
    shape = {"family": "gpt2", "d_model": 16, "n_heads": 2, "n_layers": 1, "max_tokens": 16, "vocabulary": 280}
    data = {"train": str(tmp_path / "text.txt"), "valid": str(tmp_path / "text.txt"), "kind": "text"}
    deck = write_deck(
        tmp_path / "lm.toml", {"shape": shape, "data": data}, codec_kind="none", train_steps=30, train_lr=1e-2
    )
    figures = run(load_train_deck(deck))
    log = read_log(tmp_path / "lm.jsonl")
    assert figures["perplexity_exact"] < 0.5 * log[0]["perplexity_exact"]
    job = """
        [model]\npath = "lm.h5"\n[input]\npath = "text.txt"\nkind = "text"\nmax_tokens = 16
        [task]\nname = "perplexity"\nstride = 16\n[parallel]\nstrategy = "single"\n[output]\npath = "out.h5"\n"""
    (tmp_path / "job.toml").write_text(job.replace("        ", ""))
    assert main(["run", str(tmp_path / "job.toml")]) == 0
    measured = json.loads((tmp_path / "out.json").read_text())["metrics"]["perplexity"]
    assert measured == pytest.approx(figures["perplexity_exact"], rel=0.02)  # the last window is shorter there


def test_image_model_from_nothing(tmp_path):
    write_images(tmp_path / "train.npz", 60)
    write_images(tmp_path / "valid.npz", 30, seed=1)
    shape = {"family": "vit", "d_model": 16, "n_heads": 2, "n_layers": 1, "patch_size": 2}
    data = {"train": str(tmp_path / "train.npz"), "valid": str(tmp_path / "valid.npz")}
    data |= {"kind": "images", "labels": "labels"}
    changes = {"codec_kind": "none", "train_steps": 60, "train_lr": 5e-3, "train_augment": "shift"}
    figures = run(load_train_deck(write_deck(tmp_path / "vit.toml", {"shape": shape, "data": data}, **changes)))
    assert figures["accuracy_exact"] > 0.6
    preprocess = read_model(tmp_path / "vit.h5").preprocess
    with np.load(tmp_path / "train.npz") as file:
        assert preprocess["mean"] == pytest.approx([file["images"].mean() / 255])


@pytest.mark.parametrize(("family", "learn"), [("vit", "all"), ("bert", "codebooks"), ("gpt2", "all")])
def test_continued_run_has_the_same_bits(tmp_path, family, learn):
    """Weights, codebooks, averages, moments and log; stopped after 3 of 6 steps."""
    decks = {}
    for name in ("whole", "parts"):
        folder = tmp_path / name
        folder.mkdir()
        options = {"train_steps": 6, "train_learn": learn, "train_checkpoint_every": 3, "train_seed": 4}
        options |= {"codec_sinks": 2} if family == "gpt2" else {}
        decks[name] = small_deck(folder, family, codec_encoder="subspace", **options)
    run(decks["whole"])
    stopped = Run(decks["parts"], MPI.COMM_SELF, 1, "deck.toml")
    take = stopped._step

    def interrupted(step, log):
        if step == 4:
            raise KeyboardInterrupt
        take(step, log)

    stopped._step = interrupted
    with pytest.raises(KeyboardInterrupt):
        stopped()
    run(decks["parts"])
    states = [h5py.File(deck.beside(".checkpoint.h5"))["state"] for deck in decks.values()]
    assert set(states[0]) == set(states[1]) and len(states[0]) > 8
    for name in states[0]:
        assert np.array_equal(states[0][name][()], states[1][name][()]), name
    logs = [[{**r, "wall_s": 0} for r in read_log(deck.beside(".jsonl"))] for deck in decks.values()]
    assert logs[0] == logs[1]
    assert read_model(decks["parts"].output.path).codec.config.sinks == (2 if family == "gpt2" else 0)


@pytest.mark.parametrize(
    ("wanted", "able", "taken"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("bfloat16", False, "bfloat16"),
    ],
)
def test_precision_of_products(tmp_path, capsys, monkeypatch, wanted, able, taken):
    """What was taken is in the file and has the bits of asking for it; a slow choice is said."""
    monkeypatch.setattr(start, "has_bfloat16", lambda device: able)
    weights = {}
    for precision in (wanted, "float32", "bfloat16"):
        deck = small_deck(tmp_path, "vit", precision, train_steps=2, train_precision=precision)
        run(deck)
        file = read_model(deck.output.path)
        assert file.provenance["train_precision"] == (taken if precision == wanted else precision)
        weights[precision] = file.weights["blocks.0.fc1.weight"]
    assert np.array_equal(weights[wanted], weights[taken])
    assert not np.array_equal(weights["float32"], weights["bfloat16"])
    assert ("has no instructions for it" in capsys.readouterr().err) != able


def test_checkpoint_of_another_deck(tmp_path, capsys):
    deck = write_deck(tmp_path / "deck.toml", write_small(tmp_path, "bert"), train_learn="codebooks")
    assert main(["train", str(deck)]) == 0
    capsys.readouterr()
    assert main(["train", str(deck)]) == 0  # nothing is left to do
    write_deck(tmp_path / "deck.toml", write_small(tmp_path, "bert"), train_learn="codebooks", train_seed=1)
    refused(capsys, deck, "another deck", "deck.checkpoint.h5", "train.resume=false")
    assert main(["train", str(deck), "train.resume=false"]) == 0


def test_loss_that_is_no_number(tmp_path, capsys):
    """The step is named, and the state before it is kept."""
    deck = write_deck(
        tmp_path / "deck.toml", write_small(tmp_path, "vit"), train_steps=9, train_lr=1e30, train_checkpoint_every=1
    )
    assert main(["train", str(deck)]) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert "step " in message and "train.lr" in message and "deck.checkpoint.h5" in message
    with h5py.File(tmp_path / "deck.checkpoint.h5") as file:
        assert f"step {file.attrs['step'] + 1}:" in message
        assert all(np.isfinite(item[()]).all() for name, item in file["state"].items() if name.startswith("weights"))


def test_wrong_data(tmp_path, capsys):
    sections = write_small(tmp_path, "vit")
    deck = write_deck(tmp_path / "deck.toml", sections)
    write_images(tmp_path / "data.npz", labels=[0, 1, 2, 3])
    refused(capsys, deck, "data.npz", "label 3", "0..2")
    np.savez(tmp_path / "data.npz", images=np.zeros((0, 8, 8), np.uint8), labels=np.zeros(0, np.int64))
    refused(capsys, deck, "data.npz", "no items")
    write_images(tmp_path / "data.npz", 4)
    write_deck(tmp_path / "deck.toml", sections, data_holdout=0.0)
    refused(capsys, deck, "data.holdout")
    (tmp_path / "data.npz").unlink()
    refused(capsys, deck, "data.npz", "data.path")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_stepz": 3}, ("stepz", "did you mean 'steps'")),
        ({"train_steps": 0}, ("train.steps", "positive integer")),
        ({"train_lr": -1.0}, ("train.lr", "above 0")),
        ({"codec_kind": "none", "train_learn": "norms"}, ("train.learn", "codec.kind")),
        ({"codec_kind": "grouped", "codec_groups": 3, "codec_encoder": "subspace"}, ("subspace", "groups")),
        ({"output_codebooks_only": True}, ("output.codebooks_only", "train.learn")),
        ({"codec_init": "model"}, ("model.h5", "no codebooks")),
        ({"codec_kind": "scalar"}, ("fitted", "model.codebooks", "residual")),
        ({"codec_sinks": 2}, ("sinks = 2", "decoders")),
        ({"shape_family": "vit"}, ("model.path", "shape.family")),
        ({"train_device": "cuda"}, ("train.device", "GPU")),
    ],
)
def test_wrong_decks(tmp_path, capsys, changes, words):
    refused(capsys, write_deck(tmp_path / "deck.toml", write_small(tmp_path, "vit"), **changes), *words)


def test_without_pytorch(tmp_path, capsys, monkeypatch):
    deck = write_deck(tmp_path / "deck.toml", write_small(tmp_path, "vit"))
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(capsys, deck, "PyTorch", "pip install 'astra-mpi[train]'")


def test_similarity_loss_has_the_gradient_of_the_whole_matrix():
    rng = np.random.default_rng(0)
    found = torch.from_numpy(rng.normal(size=(5, 4)).astype(np.float32)).requires_grad_()
    exact = torch.from_numpy(rng.normal(size=(5, 4)).astype(np.float32))
    loss = losses.same_embedding(MPI.COMM_SELF, found, exact, 0.7, 5)
    (gradient,) = torch.autograd.grad(loss, found)
    a, b = F.normalize(found, dim=1), F.normalize(exact, dim=1)
    want = (1 - F.cosine_similarity(found, exact)).mean() + 0.7 * F.mse_loss(a @ a.T, b @ b.T)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(gradient, torch.autograd.grad(want, found)[0])


def test_order_takes_every_item_once_an_epoch():
    lengths = np.random.default_rng(0).integers(1, 30, 103)
    items, valid = hold_out(103, 0.1, 3)
    assert len(items) + len(valid) == 103 and not set(items) & set(valid)
    order = Order(items, lengths, 8, 3)
    epoch = [order.joint(step) for step in range(order.steps_per_epoch)]
    flat = np.concatenate(epoch)
    assert len(set(flat)) == len(flat) == len(items) // 8 * 8
    assert not np.array_equal(epoch[0], order.joint(order.steps_per_epoch))
    spread = np.mean([np.ptp(lengths[joint]) for joint in epoch])
    assert spread < 0.3 * np.ptp(lengths)  # sequences of similar length are together


def test_rate_rises_and_falls():
    deck = load_train_deck.__globals__["TrainSection"](steps=100, warmup=0.1, floor=0.2)
    rates = [schedule(step, deck) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1) and np.argmax(rates) in (9, 10)
    assert (np.diff(rates[10:]) < 0).all() and rates[-1] == pytest.approx(0.2, abs=0.01)


def batches(family, folder, comm, **changes):
    """After three steps on `comm`: everything that a checkpoint would keep."""
    deck = small_deck(folder, family, f"on{comm.Get_size()}-{MPI.COMM_WORLD.rank}", train_batch=10, **changes)
    training = Run(deck, comm, 1, "deck.toml")
    found = []
    for step in range(3):
        joint = training.order.joint(step)
        part = training.items.part(joint, comm.Get_rank(), comm.Get_size())
        found.append(training.trainer.step(step, part))
    return found, training.trainer.state()


@pytest.mark.mpi
@pytest.mark.parametrize("family", ["vit", "bert", "gpt2"])
def test_ranks_together_equal_one_process(comm, mpi_tmp_path, family):
    """The joint batch, its gradients, codebook statistics, noise and revival, whatever the number of ranks."""
    folder = mpi_tmp_path / f"{family}{MPI.COMM_WORLD.rank}"
    folder.mkdir()
    changes = {"codec_revive": 0.5, "codec_decay": 0.7}
    if family == "bert":
        changes |= {"train_learn": "codebooks", "codec_noise": 0.5}
    alone, want = batches(family, folder, MPI.COMM_SELF, **changes)
    together, state = batches(family, folder, comm, **changes)
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-6)
    for name, tensor in want.items():
        scale = float(tensor.detach().abs().max()) + 1e-6
        off = float((state[name] - tensor).detach().abs().max()) / scale
        assert off < (2e-2 if name.startswith("exp_avg") else 5e-3), (name, off)
        if name == "rates":
            continue
        every = np.empty((comm.Get_size(), *state[name].shape), np.float32)
        comm.Allgather(np.ascontiguousarray(state[name].detach().numpy(), np.float32), every)
        assert (every == every[0]).all(), name  # the same bits on all ranks


@pytest.mark.mpi
def test_precision_is_that_of_every_rank(comm, monkeypatch):
    last = comm.Get_rank() == comm.Get_size() - 1
    monkeypatch.setattr(start, "has_bfloat16", lambda device: not last)
    assert start.halves("auto", "cpu", comm) is False


@pytest.mark.mpi
@pytest.mark.parametrize("n_bytes", [300, 9000])
def test_a_failed_write_ends_all_ranks_and_loses_nothing(comm, mpi_tmp_path, n_bytes):
    """The log, a checkpoint or the model: one sentence on all ranks, then the same model as undisturbed."""
    changes = dict(train_steps=2, train_checkpoint_every=1, train_batch=8, output_path=str(mpi_tmp_path / "out.h5"))
    if comm.Get_rank() == 0:
        small_deck(mpi_tmp_path, "vit", **changes)
    comm.Barrier()
    deck = load_train_deck(mpi_tmp_path / "deck.toml")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        with pytest.raises(AstraError, match=r"cannot be written \(File too large\)") as caught:
            run(deck, comm)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.collective and caught.value.exit_code == 3
    assert not list(mpi_tmp_path.rglob("*.tmp"))
    comm.Barrier()
    run(deck, comm)
    if n_bytes == 300:  # nothing had been done yet
        return
    again = read_model(deck.output.path).digest
    comm.Barrier()
    run(load_train_deck(mpi_tmp_path / "deck.toml", ["train.resume=false"]), comm)
    assert read_model(deck.output.path).digest == again


@pytest.mark.mpi
def test_error_of_one_rank_is_everyones(comm, mpi_tmp_path):
    folder = mpi_tmp_path / f"{MPI.COMM_WORLD.rank}"
    folder.mkdir()
    deck = small_deck(folder, "vit")
    if comm.Get_rank() == comm.Get_size() - 1:
        (folder / "data.npz").unlink()
    with pytest.raises(InputError, match=r"data\.npz"):
        Run(deck, comm, 1, "deck.toml")
    assert issubclass(InputError, AstraError)
