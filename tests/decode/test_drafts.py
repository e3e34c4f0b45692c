"""Drafts on P real ranks: the tokens, and the logits that they come from, are those without drafts."""

import dataclasses

import numpy as np
import pytest
from mpi4py import MPI

from astra_mpi.codec.config import CodecConfig
from astra_mpi.decode.conversation import Conversation
from astra_mpi.decode.drafts import Guess
from astra_mpi.decode.drafts.source import draft_of
from astra_mpi.decode.request import Request
from astra_mpi.decode.sampling import Sampler
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import AstraError, InputError
from helpers.architectures import on_ranks
from helpers.drafts import Half, check_all_guesses
from helpers.fakes import gpt2_config, llama_config, model_file
from helpers.sampling import Recorder

pytestmark = pytest.mark.mpi

ARCHITECTURES = on_ranks()
CONFIGS = {"gpt2": gpt2_config(), "llama": llama_config(), "mistral": ARCHITECTURES["mistral"][0]}
KV = CodecConfig(site="kv", stages=2, codebook_size=8, sinks=1)
N_NEW = 8


@pytest.fixture(autouse=True)
def _few(comm):
    if comm.size > 3:
        pytest.skip("three ranks show what more would")


@pytest.fixture
def checked(monkeypatch):
    check_all_guesses(monkeypatch)


def make_model(comm, config, codec=None, spec="sp", backend="numpy", **options):
    model = Model(model_file(config, codec), comm, get_backend(backend, comm, **options))
    model.use(spec)
    return model


def small_model(config, noise=0.0):
    file, draw = model_file(config), np.random.default_rng(5)
    weights = {k: (w + noise * draw.normal(size=w.shape)).astype(np.float32) for k, w in file.weights.items()}
    model = Model(dataclasses.replace(file, weights=weights), MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
    model.use("single")
    return model


def prompts(config, batch):
    rng = np.random.default_rng(batch)
    return rng.integers(0, config.vocab_size, (batch, 9)), np.arange(9) < rng.integers(2, 10, batch)[:, None]


def both(model, ids, mask, draft, **options):
    """Tokens and logits without drafts and with them; the report of the latter."""
    found = []
    for one in (None, draft):
        recorder = Recorder(noise=0.3)
        chosen = dict(max_new_tokens=N_NEW, sample=recorder) | options
        new = model.generate(ids, mask, draft=one(found[0][0]) if one else None, **chosen)
        found.append((new, recorder.logits, model.report["generation"]["cache_bytes"]))
    assert found[0][2] == found[1][2]
    return (*found, model.report["generation"])


WAYS = [("single", "local", "keys"), ("sp", "local", "keys"), ("sp", "merged", "keys"), ("astra", "merged", "keys")]
WAYS += [("astra", "local", "codes")]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(("spec", "decode", "far"), WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_without_drafts(comm, checked, name, spec, decode, far, batch):
    """To the bit: rows do not depend on how many others are computed with them, and dropped drafts leave nothing."""
    config = CONFIGS[name]
    model = make_model(comm, config, KV if spec == "astra" else None, spec)
    ids, mask = prompts(config, batch)
    plain, drafted, report = both(model, ids, mask, lambda new: Half(new, config.vocab_size), decode=decode, far=far)
    assert np.array_equal(plain[0], drafted[0])
    assert plain[1].keys() == drafted[1].keys()
    assert all(np.array_equal(row, drafted[1][key]) for key, row in plain[1].items())
    drafts = report["drafts"]
    assert 0 < drafts["accepted"] < drafts["drafted"]
    assert drafts["checks"] + drafts["accepted"] == batch * (N_NEW - 1)
    row = 4 * config.n_heads * (config.d_head + 2) * config.n_layers
    rows = drafts["checks"] + drafts["drafted"]
    assert report["decode_bytes"] == [row * rows * (decode == "merged" and comm.size > 1)] * comm.size


@pytest.mark.parametrize("compute", ["bfloat16", "int8"])
def test_narrow_products(comm, checked, compute):
    config = llama_config(d_model=64, n_heads=4, n_kv_heads=2, d_ff=96)
    model = make_model(comm, config, spec="sp", compute=compute)
    draft = lambda new: Half(new, config.vocab_size)  # noqa: E731
    plain, drafted, report = both(model, *prompts(config, 2), draft, decode="merged")
    assert 0 < report["drafts"]["accepted"] < report["drafts"]["drafted"]
    assert all(np.array_equal(row, drafted[1][key]) for key, row in plain[1].items())


@pytest.mark.parametrize(("batch", "backend"), [(20, "numpy"), (3, "reference")])
def test_one_operation_after_another(comm, checked, batch, backend):
    """More sequences than a compiled call takes are not drafted for; other backends agree up to rounding."""
    config = CONFIGS["llama"]
    model = make_model(comm, config, backend=backend)
    ids, mask = prompts(config, batch)
    plain, drafted, report = both(model, ids, mask, lambda new: Half(new, config.vocab_size), decode="merged")
    scale = max(np.abs(row).max() for row in plain[1].values()) if plain[1] else 1
    for key, row in plain[1].items():
        np.testing.assert_allclose(drafted[1][key], row, atol=2e-6 * scale)
    assert bool(report["drafts"]["drafted"]) == (backend == "reference")


@pytest.mark.parametrize(("spec", "decode"), [("single", "local"), ("sp", "local"), ("sp", "merged")])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_lookup_and_small_models(comm, checked, spec, decode, temperature):
    config = llama_config(vocab_size=12)
    model = make_model(comm, config, spec=spec)
    ids, mask = prompts(config, 3)
    settings = dict(max_new_tokens=20, decode=decode, sample=Sampler(temperature, seed=3))
    plain = model.generate(ids, mask, **settings)
    accepted = {}
    for name, draft in {"lookup": "lookup", "same": small_model(config), "like": small_model(config, 0.03)}.items():
        assert np.array_equal(model.generate(ids, mask, draft=draft, draft_tokens=3, **settings), plain)
        drafts = model.report["generation"]["drafts"]
        accepted[name] = drafts["accepted"] / drafts["drafted"]
    assert 0 < accepted["lookup"] < 1 and accepted["same"] == 1 > accepted["like"] > 0.4


def test_a_small_model_with_fewer_positions(comm, checked):
    """It guesses of prompts that it has positions for, until these end."""
    config, small = llama_config(), llama_config(max_positions=6)
    model = make_model(comm, config)
    ids, mask = prompts(config, 3)
    lengths = mask.sum(axis=1)
    assert lengths.max() > 6 > lengths.min()
    settings = dict(max_new_tokens=12, decode="merged")
    plain = model.generate(ids, mask, **settings)
    assert np.array_equal(model.generate(ids, mask, draft=small_model(small), **settings), plain)
    assert model.report["generation"]["drafts"]["accepted"] > 0
    long = ids[:, :9], np.ones((3, 9), bool)
    plain = model.generate(*long, **settings)
    assert np.array_equal(model.generate(*long, draft=small_model(small), **settings), plain)
    assert model.report["generation"]["drafts"]["drafted"] == 0


def test_ends_within_a_draft(comm, checked):
    """At a stop token, at a text that ends, and at the last position; ids are handed out step by step."""
    config = gpt2_config()
    model = make_model(comm, config)
    ids = np.random.default_rng(0).integers(0, 50, (3, 31))
    mask = np.arange(31) < np.array([31, 20, 9])[:, None]

    def counting(logits, sequences, step):
        return (np.asarray(sequences) * 15 + step) % 50

    known = (15 * np.arange(3)[:, None] + np.arange(20)) % 50
    want = np.full((3, 12), -1)
    want[0, :9], want[1, :4], want[2, :7] = known[0, :9], known[1, :4], known[2, :7]
    for decode in ("local", "merged"):
        for listens in (False, True):
            seen, draft = [], Half(known, 50)
            draft._guess = lambda s, begin, n: Guess(known[s][begin : begin + n].tolist(), [0] * n)
            options = dict(sample=counting, stop=[18], ends=lambda new: new[-1] == 36, decode=decode, draft=draft)
            listen = (lambda step, ids: seen.append((step, ids))) if listens and comm.rank == 0 else None  # noqa: B023
            new = model.generate(ids, mask, max_new_tokens=12, on_tokens=listen, **options)
            assert np.array_equal(new, want)
            assert model.report["generation"]["ended"] == ["positions", "stop", "stop"]
            assert model.report["generation"]["drafts"]["tokens_per_pass"] > 2
            if seen:
                assert [step for step, _ in seen] == list(range(9))
                assert np.array_equal(np.array([ids for _, ids in seen]).T, want[:, :9])


@pytest.mark.parametrize("decode", ["local", "merged"])
def test_interrupted_and_failed(comm, checked, decode):
    """Whoever wants no more ends all; a callback that fails, fails all."""
    config = gpt2_config()
    model = make_model(comm, config)
    ids, known = np.arange(6)[None], np.arange(30)[None] % 50
    seen = []
    options = dict(max_new_tokens=30, decode=decode, sample=lambda logits, s, step: np.full(len(s), step % 50))
    draft = Half(known, 50)

    def listen(step, ids):
        seen.append(step)
        if step == 20:
            raise ValueError("no more")

    first = dict(on_tokens=lambda step, ids: seen.append(step)) if comm.rank == 0 else {}
    new = model.generate(ids, draft=draft, enough=lambda: len(seen) > 5, **first, **options)[0]
    n = comm.bcast(len(seen))
    assert 5 < n < 30 and np.array_equal(new[:n], np.arange(n)) and (new[n:] == -1).all()
    seen.clear()
    with pytest.raises(AstraError, match="no more"):
        model.generate(ids, draft=draft, on_tokens=listen if comm.rank == 0 else None, **options)
    assert np.array_equal(model.generate(ids, draft=draft, **options)[0], known[0])


@pytest.mark.parametrize(("spec", "codec"), [("single", None), ("sp:kv", None), ("astra", KV)])
def test_conversations(comm, checked, spec, codec):
    """Answers, and what others are told of them, are those without drafts."""
    config = llama_config(vocab_size=9, max_positions=80)
    answers = []
    for draft in (None, "lookup"):
        model, rng, said, found = make_model(comm, config, codec, spec), np.random.default_rng(1), [], []
        conversation, drafts = Conversation(model), []
        for n, cut in ((11, True), (3, False), (6, True), (5, True)):
            said += rng.integers(0, 9, n).tolist()
            request = Request(8, Sampler(0.8, seed=1), draft=draft_of(draft, model), draft_tokens=4)
            new = conversation.say(np.array(said), request, cut).tolist()
            conversation.rest()
            said += new
            found.append((new, model.report["conversation"]["told_bytes"]))
            drafts.append(model.report["generation"]["drafts"])
        answers.append(found)
    assert answers[0] == answers[1]
    assert sum(one["drafted"] for one in drafts) > sum(one["accepted"] for one in drafts) > 0


def test_refused(comm):
    model = make_model(comm, CONFIGS["gpt2"])
    ids = np.arange(5)[None]
    for options, said in (
        (dict(draft="looking"), "draft = 'looking' is unknown; use 'lookup'"),
        (dict(draft="lookup", draft_tokens=16), "draft_tokens = 16: give an integer from 1 to 15"),
        (dict(draft=small_model(gpt2_config(vocab_size=54))), "other tokens than the model"),
    ):
        with pytest.raises(InputError, match=said):
            model.generate(ids, max_new_tokens=3, **options)
    if comm.size > 1:
        with pytest.raises(InputError, match="drafts differ between ranks"):
            model.generate(ids, max_new_tokens=3, draft="lookup" if comm.rank else None)
        with pytest.raises(InputError, match=r"load it with comm = MPI\.COMM_SELF"):
            model.generate(ids, max_new_tokens=3, draft=model)
