"""Conversations on P real ranks: every step of every turn against the serial oracle over the whole conversation."""

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.decode.conversation import Conversation
from astra_mpi.decode.request import Request
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.oracle.reference import oracle
from helpers.fakes import gpt2_config, llama_config, model_file

pytestmark = pytest.mark.mpi

SCALED = dict(rope_type="llama3", rope_factor=4.0, rope_trained_positions=16, rope_theta=100.0)
FAMILIES = {
    "gpt2": gpt2_config(max_positions=90),
    "llama": llama_config(tied=False, attention_bias=True, max_positions=90, **SCALED),
}
CODECS = {
    "residual": CodecConfig(stages=3, codebook_size=16),
    "one-code": CodecConfig(stages=1, codebook_size=9),
    "normed": CodecConfig(site="normed", kind="grouped", groups=4, codebook_size=300),
    "kv": CodecConfig(site="kv", stages=2, codebook_size=8),
    "kv-sinks": CodecConfig(site="kv", stages=2, codebook_size=8, sinks=2),
    "residual-sinks": CodecConfig(stages=3, codebook_size=16, sinks=8),
}
#: prompts' lengths, and whether each is cut; one shorter than the number of ranks
TURNS = [(17, True), (9, True), (2, False), (13, True), (1, True), (5, False)]
N_NEW = 4


@pytest.fixture(autouse=True)
def _few(comm):
    if comm.size > 3:
        pytest.skip("three ranks show what more would")


class Talk:
    """Turns with random messages; keeps the logits of all steps, and what was told of all tokens."""

    def __init__(self, comm, model, seed=3):
        self.comm, self.model, self.rng = comm, model, np.random.default_rng(seed)
        self.conversation, self.ids = Conversation(model), np.empty(0, np.int64)
        self.codes: dict[tuple[int, int], np.ndarray] = {}

    def sample(self, logits, sequences, step):
        self.logits[step] = logits[0].copy()
        noise = np.random.default_rng([len(self.ids), step]).gumbel(size=logits.shape[1])
        return (logits + noise).argmax(axis=1)

    def turn(self, n_tokens, cut, **changes):
        message = self.rng.integers(0, self.model.config.vocab_size, n_tokens)
        self.ids = np.concatenate([self.ids, message])
        self.logits = {}
        new = self.conversation.say(self.ids, Request(N_NEW, self.sample, **changes), cut)
        logits = {step: row for part in self.comm.allgather(self.logits) for step, row in part.items()}
        self.ids = np.concatenate([self.ids, new])
        kept = self.model.report["conversation"]["kept_tokens"]
        self.codes = {key: codes for key, codes in self.codes.items() if key[1] < kept}
        self._note()
        return new, np.array([logits[step] for step in sorted(logits)][: len(new)])

    def _note(self):
        """The codes of this rank's tokens, as others see them or will."""
        past, strategy, rank = self.conversation.past, self.model.strategy, self.comm.rank
        self.conversation.rest()
        for chunk in past.chunks:
            assert not chunk.raw
            begin = chunk.first + int(chunk.counts[:rank].sum()) + int(chunk.sinks[rank])
            for i in range(self.model.config.n_layers if strategy.name == "astra" and self.comm.size > 1 else 0):
                if i in chunk.seen:
                    for j, codes in enumerate(chunk.seen[i]):
                        self.codes[i, begin + j] = codes

    def owner_and_told(self):
        chunks, size = self.conversation.past.chunks, self.comm.size
        owner = [np.repeat(np.arange(size), chunk.counts) for chunk in chunks]
        told = [np.full(len(o), c.heard) | (c.cut & (o < size - 1)) for c, o in zip(chunks, owner, strict=True)]
        return np.concatenate(owner), np.concatenate(told)

    def assert_equals_oracle(self, logits, n_new):
        """The last turn's logits are those of a pass over the whole conversation, with its tokens where they lie."""
        codes = {k: v for part in self.comm.allgather(self.codes) for k, v in part.items()}
        difference = self.comm.bcast(self._difference(logits, n_new, codes) if self.comm.rank == 0 else 0.0)
        assert difference < 2e-4

    def _difference(self, logits, n_new, codes):
        """Relative to the largest logit, on rank 0."""
        model, size = self.model, self.comm.size
        tokens, (owner, told) = self.ids[:-1], self.owner_and_told()
        terms = {}
        if model.strategy.name == "astra" and size > 1:
            blank = np.zeros(model.codec.config.codes_per_token, np.int64)
            rows = [[codes.get((i, t), blank) for t in range(len(tokens))] for i in range(model.config.n_layers)]
            sinks = int(self.conversation.past.chunks[0].sinks.sum())
            terms = dict(codec=model.codec, codes=[np.array(r) for r in rows], told=told, sinks=sinks)
        result = oracle(model.config, model.weights, tokens, owner, size, **terms)
        want = result.hidden[len(tokens) - n_new :]
        assert result.worst_gap < 1e-4
        return np.abs(logits - want).max() / np.abs(want).max()


def make_model(comm, config, spec, codec=None, remote="auto"):
    model = Model(model_file(config, codec), comm, get_backend("numpy", comm))
    model.use(spec, remote=remote)
    return model


def assert_all_turns_equal_oracle(comm, model):
    talk = Talk(comm, model)
    kept = told = 0
    for n_tokens, cut in TURNS:
        new, logits = talk.turn(n_tokens, cut)
        assert len(new) == N_NEW == len(logits)
        talk.assert_equals_oracle(logits, N_NEW)
        report = model.report["conversation"]
        assert report["kept_tokens"] == kept and model.report["tokens"] == [len(talk.ids) - N_NEW - kept]
        kept = len(talk.ids) - 1
        told += sum(report["told_bytes"])
        if cut is False:
            assert sum(model.report["contributed_bytes"]) == 0 == sum(report["told_bytes"])
    assert (told > 0) == (comm.size > 1 and model.strategy.site is not None)
    return talk


CASES = [
    ("gpt2", "residual", "table"),
    ("gpt2", "one-code", "table"),
    ("gpt2", "normed", "gemm"),
    ("llama", "residual", "table"),
    ("llama", "normed", "gemm"),
    ("llama", "kv", "table"),
    ("llama", "kv-sinks", "table"),
]


FIRST_TURNS = [
    ("kv-sinks", (11, False)),
    ("residual-sinks", (1, True)),
    ("residual-sinks", (4, True)),
    ("kv-sinks", (17, True)),
]


@pytest.mark.parametrize(("codec", "first"), FIRST_TURNS)
def test_sinks_are_those_of_the_beginning(comm, codec, first):
    """Of a first prompt that one rank reads, one that is shorter than the sinks, and one whose slices are: ranks that
    do not keep them compute them before the next cut, and nobody is told of them."""
    model = make_model(comm, FAMILIES["llama"], "astra", CODECS[codec])
    talk, n_sinks = Talk(comm, model), min(CODECS[codec].sinks, first[0])
    for n_tokens, cut in [first, (9, True), (2, False), (5, True)]:
        new, logits = talk.turn(n_tokens, cut)
        talk.assert_equals_oracle(logits, len(new))
    if comm.size > 1:
        past = talk.conversation.past
        assert int(past.chunks[0].sinks.sum()) == n_sinks and not past.missing_sinks()
        replicas = [chunk.replicas for chunk in past.chunks]
        assert not any(replicas[1:]) and (comm.rank > 0 or not replicas[0])
        assert past.n_own == sum(int(chunk.counts[comm.rank]) for chunk in past.chunks) + replicas[0]
    talk.ids = talk.ids[: first[0]]  # and of another beginning, they are others
    talk.ids[0] += 1 if talk.ids[0] == 0 else -1
    new, logits = talk.turn(6, True)
    assert model.report["conversation"]["kept_tokens"] == 0
    talk.assert_equals_oracle(logits, len(new))


@pytest.mark.parametrize(("family", "codec", "remote"), CASES)
def test_astra_turns_equal_oracle(comm, family, codec, remote):
    assert_all_turns_equal_oracle(comm, make_model(comm, FAMILIES[family], "astra", CODECS[codec], remote))


@pytest.mark.parametrize(("family", "spec"), [("llama", "single"), ("llama", "sp"), ("gpt2", "sp:kv")])
def test_exact_turns_equal_oracle_and_a_fresh_prefill(comm, family, spec):
    model = make_model(comm, FAMILIES[family], spec)
    talk = assert_all_turns_equal_oracle(comm, model)
    prompt = talk.ids
    kept = talk.conversation.say(prompt, Request(N_NEW), True)
    fresh = model.generate(prompt[None], max_new_tokens=N_NEW)[0]
    assert kept.tolist() == fresh.tolist()


@pytest.mark.parametrize("spec", ["astra", "sp"])
def test_another_beginning_is_computed_anew(comm, spec):
    """A conversation whose middle has changed keeps what is before it, and gives the oracle's logits."""
    model = make_model(comm, FAMILIES["llama"], spec, CODECS["kv"])
    talk = Talk(comm, model)
    for n_tokens, cut in [(17, True), (6, False), (9, True)]:
        talk.turn(n_tokens, cut)
    for n_same, n_kept in [(len(talk.ids) - 3, None), (22, 20), (19, None), (9, 0)]:
        talk.ids = talk.ids[:n_same]
        new, logits = talk.turn(3, True)
        found = model.report["conversation"]["kept_tokens"]
        assert found <= n_same and (n_kept is None or comm.size == 1 or found == n_kept)
        talk.assert_equals_oracle(logits, len(new))


def test_what_is_kept_is_counted_and_bytes_are_those_of_the_codes(comm):
    config, codec = FAMILIES["llama"], CODECS["kv"]
    model = make_model(comm, config, "astra", codec)
    talk = Talk(comm, model)
    talk.turn(17, True)
    first = model.layout(np.array([17])).counts[0]
    talk.turn(9, True)
    bits = codec.bits_per_token
    want = [0] * comm.size
    if comm.size > 1:
        prompt = [0, *first[1:]]
        answer = np.bincount([np.flatnonzero(first)[-1]], minlength=comm.size) * (N_NEW - 1)
        bytes_of = lambda n: -(-int(n) * bits // 8) * config.n_layers  # noqa: E731
        want = [bytes_of(a) + bytes_of(b) for a, b in zip(prompt, answer, strict=True)]
    assert model.report["conversation"]["told_bytes"] == want
    past = talk.conversation.past
    assert past.n_tokens == len(talk.ids) - 1
    assert comm.allreduce(past.n_own) == past.n_tokens
    assert past.n_bytes >= past.n_own * 2 * config.d_kv * 4 * config.n_layers


@pytest.mark.parametrize("spec", ["astra", "single"])
def test_an_answer_that_is_ended_early_goes_on_where_it_was(comm, spec):
    """By a rank that wants no more, and by new ids that end it: what comes later is as without it."""
    model = make_model(comm, FAMILIES["llama"], spec, CODECS["kv"])
    talk, n_seen = Talk(comm, model), []
    enough = (lambda: len(n_seen) >= 2) if comm.rank == 0 else (lambda: False)
    on_tokens = (lambda step, ids: n_seen.append(step)) if comm.rank == 0 else None
    for n_tokens, cut in [(17, True), (4, False), (9, True)]:
        n_seen.clear()
        message = talk.rng.integers(0, model.config.vocab_size, n_tokens)
        talk.ids, talk.logits = np.concatenate([talk.ids, message]), {}
        request = Request(12, talk.sample, on_tokens=on_tokens, enough=enough)
        new = talk.conversation.say(talk.ids, request, cut)
        assert 2 <= len(new) <= 4 and model.report["generation"]["ended"] == ["interrupted"]
        talk.ids = np.concatenate([talk.ids, new])
        talk._note()
        assert talk.conversation.past.n_tokens == len(talk.ids) - 1
    ends = lambda ids: len(ids) == 3  # noqa: E731
    new, logits = talk.turn(5, True, ends=ends)
    assert len(new) == 3 and model.report["generation"]["ended"] == ["stop"]
    talk.assert_equals_oracle(logits, 3)


@pytest.mark.parametrize("spec", ["segment_means:3", "astra:inputs", "single"])
def test_what_keeps_no_past_starts_from_the_beginning(comm, spec):
    model = make_model(comm, FAMILIES["gpt2"], spec)
    talk = Talk(comm, model)
    for n_tokens, cut in TURNS[:3]:
        talk.turn(n_tokens, cut)
        if spec != "single":
            assert model.report["conversation"]["kept_tokens"] == 0
            assert model.report["tokens"] == [len(talk.ids) - N_NEW]


def test_errors_end_a_turn_and_leave_a_conversation_usable(comm):
    model = make_model(comm, FAMILIES["llama"], "astra", CODECS["kv"])
    talk = Talk(comm, model)
    talk.turn(11, None)  # too short to be cut, unless somebody says so
    assert sum(model.report["contributed_bytes"]) == 0 and talk.conversation.past.chunks[0].counts[0] == 11
    with pytest.raises(InputError, match="outside"):
        talk.conversation.say(np.array([1, 2, 99]), Request(2))

    def fail(logits, sequences, step):
        raise InputError("no sample")

    with pytest.raises(InputError, match="no sample"):
        talk.conversation.say(talk.ids, Request(2, fail))
    new, logits = talk.turn(6, True)
    assert model.report["conversation"]["kept_tokens"] == 0
    talk.assert_equals_oracle(logits, len(new))
