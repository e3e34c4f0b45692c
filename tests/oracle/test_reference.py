"""The serial oracle against transformers, and against loops over queries and keys."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from astra_mpi.oracle.far import Means, Rounded
from astra_mpi.oracle.reference import oracle

D = 24
TOL = 1e-10  # float64 on both sides, activations of order 1


RENAMES = [
    (r"^vit\.", ""),
    (r"^embeddings\.cls_token$", "embed.class"),
    (r"^embeddings\.(position)_embeddings(\.weight)?$", r"embed.\1"),
    (r"^embeddings\.(word)_embeddings\.weight$", r"embed.\1"),
    (r"^embeddings\.token_type_embeddings\.weight$", "embed.type"),
    (r"^embeddings\.patch_embeddings\.projection\.", "embed.patch."),
    (r"^embeddings\.LayerNorm\.", "embed.norm."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.attention\.self\.(\w)\w*\.", r".\1."),  # query, key, value
    (r"\.attention\.(\w)_proj\.", r".\1."),
    (r"\.attention\.output\.LayerNorm\.|\.layernorm_before\.", ".norm1."),
    (r"\.attention\.output\.dense\.", ".o."),
    (r"\.output\.LayerNorm\.|\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.|\.mlp\.fc1\.", ".fc1."),
    (r"\.output\.dense\.|\.mlp\.fc2\.", ".fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"^pooler\.dense\.", "pooler."),
]


def canonical(module):
    """float32 weights by canonical names; linear layers (in, out)."""
    weights = {}
    for name, parameter in module.named_parameters():
        for pattern, to in RENAMES:
            name = re.sub(pattern, to, name)
        value = parameter.detach().numpy().astype(np.float32)
        if name == "embed.patch.weight":
            value = value.reshape(len(value), -1).T
        elif name in ("embed.class", "embed.position"):
            value = value.reshape(-1, D) if name == "embed.position" else value.reshape(D)
        elif name.endswith(".weight") and value.ndim == 2:
            value = value.T
        weights[name] = value
    return weights


def randomise(module, seed):
    """Every parameter random, biases and norms too, representable in float32; then float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return module.eval().double()


def shape(config):
    names = {"d_model": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"}
    values = {ours: getattr(config, theirs) for ours, theirs in names.items()}
    activation = {"gelu_new": "gelu_tanh"}.get(config.hidden_act, config.hidden_act)
    return values | {"activation": activation, "norm_eps": config.layer_norm_eps}


def make_vit(n_layers=2, n_heads=3, image=(4, 6), channels=3, n_classes=5, qkv_bias=True, act="gelu", seed=0):
    config = transformers.ViTConfig(
        image_size=image, patch_size=2, num_channels=channels, hidden_size=D, num_hidden_layers=n_layers,
        num_attention_heads=n_heads, intermediate_size=31, num_labels=max(n_classes, 1), qkv_bias=qkv_bias,
        hidden_act=act, layer_norm_eps=1e-6,
    )  # fmt: skip
    kind = transformers.ViTForImageClassification if n_classes else transformers.ViTModel
    module = randomise(kind(config) if n_classes else kind(config, add_pooling_layer=False), seed)
    ours = SimpleNamespace(family="vit", patch_size=2, n_classes=n_classes, **shape(config))
    return module, ours, canonical(module)


def make_bert(n_layers=2, n_heads=3, pooling="mean", normalize=False, act="gelu", seed=0):
    config = transformers.BertConfig(
        vocab_size=17, max_position_embeddings=20, hidden_size=D, num_hidden_layers=n_layers, hidden_act=act,
        num_attention_heads=n_heads, intermediate_size=31, layer_norm_eps=1e-12,
    )  # fmt: skip
    module = randomise(transformers.BertModel(config), seed)
    ours = SimpleNamespace(family="bert", pooling=pooling, normalize=normalize, **shape(config))
    return module, ours, canonical(module)


def make(family, **options):
    return make_vit(**options) if family == "vit" else make_bert(pooling=family, **options)


def random_tokens(family, n_content, seed=0):
    """An image of `n_content` patches in one or two rows, or ids."""
    rng = np.random.default_rng(seed)
    if family == "vit":
        return rng.normal(size=(3, *image_of(n_content)))
    return rng.integers(17, size=n_content + (family != "mean"))


def image_of(n_content):
    return (4, n_content) if n_content % 2 == 0 else (2, 2 * n_content)


def torch_forward(module, tokens, **options):
    dtype = torch.float64 if tokens.ndim == 3 else torch.int64
    with torch.no_grad():
        return module(torch.as_tensor(tokens, dtype=dtype)[None], **options)


@pytest.mark.parametrize("n_layers, n_heads, image, channels, n_classes, qkv_bias, act", [
    (1, 3, (2, 2), 1, 0, True, "gelu"),
    (2, 3, (4, 6), 3, 5, True, "gelu"),
    (3, 1, (6, 2), 2, 0, False, "relu"),
    (2, 8, (2, 14), 3, 1, False, "gelu_new"),
    (2, 4, (6, 6), 3, 7, True, "silu"),
])  # fmt: skip
def test_exact_vit_equals_transformers(n_layers, n_heads, image, channels, n_classes, qkv_bias, act):
    module, config, weights = make_vit(n_layers, n_heads, image, channels, n_classes, qkv_bias, act)
    assert ("blocks.0.q.bias" in weights) == qkv_bias
    pixels = np.random.default_rng(1).normal(size=(channels, *image))
    n_content = image[0] * image[1] // 4
    result = oracle(config, weights, pixels, np.arange(n_content) % 3, 3)
    base = module.vit if n_classes else module
    theirs = torch_forward(base, pixels).last_hidden_state[0].numpy()
    np.testing.assert_allclose(result.hidden, theirs, atol=TOL, rtol=0)
    output = torch_forward(module, pixels).logits[0].numpy() if n_classes else theirs[0]
    np.testing.assert_allclose(result.output, output, atol=TOL, rtol=0)
    assert (result.codes, result.flips, result.worst_gap) == ([], 0, 0.0)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("n_tokens, n_heads, normalize", [(1, 3, False), (2, 1, True), (7, 8, False), (9, 3, True)])
def test_exact_bert_equals_transformers(pooling, n_tokens, n_heads, normalize):
    module, config, weights = make_bert(n_heads=n_heads, pooling=pooling, normalize=normalize)
    rng = np.random.default_rng(n_tokens)
    ids = rng.integers(17, size=n_tokens)
    positions = np.sort(rng.choice(20, size=n_tokens, replace=False))
    owner = np.zeros(n_tokens - (pooling != "mean"))
    result = oracle(config, weights, ids, owner, 1, positions=positions)
    theirs = torch_forward(module, ids, position_ids=torch.as_tensor(positions)[None])
    hidden = theirs.last_hidden_state[0].numpy()
    np.testing.assert_allclose(result.hidden, hidden, atol=TOL, rtol=0)
    output = {"mean": hidden.mean(axis=0), "cls": hidden[0], "pooler": theirs.pooler_output[0].numpy()}[pooling]
    output = output / np.sqrt(np.sum(output**2)) if normalize else output
    np.testing.assert_allclose(result.output, output, atol=TOL, rtol=0)


def test_positions_default_to_the_order_of_the_tokens():
    _, config, weights = make_bert()
    ids = np.arange(5)
    default = oracle(config, weights, ids, np.zeros(5), 1)
    np.testing.assert_array_equal(default.output, oracle(config, weights, ids, np.zeros(5), 1, positions=ids).output)


@pytest.mark.parametrize("owner, size", [([0, 1, 1], 2), ([0, 1, 1, 2], 2), ([0, 0, 0, -1], 2)])
def test_owners_must_fit_tokens_and_ranks(owner, size):
    _, config, weights = make_bert()
    with pytest.raises(ValueError, match="owner must name one of 2 ranks for each of 4 content tokens"):
        oracle(config, weights, np.arange(4), owner, size, codec=random_codec("hidden", "grouped", 2, 3, 2))


def block_of(books):
    return SimpleNamespace(codebooks=tuple(books))


def settings(site, kind, n_entries):
    return SimpleNamespace(site=site, kind=kind, codebook_size=n_entries, predicts=False, has_maps=False, near=0)


def book_of(kind, entries):
    plain = {"basis": None, "transform": None, "head": None, "ordinary": None}
    return SimpleNamespace(kind=kind, width=D, entries=entries, n_codes=len(entries), **plain)


def random_codec(site, kind, n_codebooks, n_entries, n_layers, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    width = math.ceil(D / n_codebooks) if kind == "grouped" else D

    def book():
        entries = (scale * rng.normal(size=(n_codebooks, n_entries, width))).astype(np.float32)
        return book_of(kind, entries)

    blocks = tuple(block_of(book() for _ in range(1 + (site == "kv"))) for _ in range(n_layers))
    return SimpleNamespace(config=settings(site, kind, n_entries), blocks=blocks)


def lossless_codec(site, kind, module, family, tokens, n_layers):
    """Two codebooks (groups of 12, or stages of which the second can add nothing) that hold every exact row."""
    base = module.vit if family == "vit" else module
    inputs = torch_forward(base, tokens, output_hidden_states=True).hidden_states[:n_layers]
    blocks = []
    for layer, x in zip(base.layers if family == "vit" else module.encoder.layer, inputs, strict=True):
        normed = layer.layernorm_before(x) if family == "vit" else x
        attention = layer.attention if family == "vit" else layer.attention.self
        projections = [attention.k_proj, attention.v_proj] if family == "vit" else [attention.key, attention.value]
        parts = {"hidden": [x], "normed": [normed], "kv": [project(normed) for project in projections]}[site]
        blocks.append(block_of(lossless_book(kind, part[0].detach().numpy()) for part in parts))
    return SimpleNamespace(config=settings(site, kind, len(x[0])), blocks=tuple(blocks))


def lossless_book(kind, rows):
    entries = [rows, 0 * rows] if kind == "residual" else [rows[:, :12], rows[::-1, 12:]]
    return book_of(kind, np.stack(entries))


FAMILIES = ["mean", "cls", "vit"]  # "mean" and "cls" are BERT without and with a class token
SITES = ["hidden", "normed", "kv"]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_owner_is_exact_whatever_the_codebooks(family, site):
    options = {"image": image_of(7)} if family == "vit" else {}
    _, config, weights = make(family, **options)
    tokens = random_tokens(family, 7)
    owner = np.zeros(7, int)
    exact = oracle(config, weights, tokens, owner, 1)
    result = oracle(config, weights, tokens, owner, 1, codec=random_codec(site, "residual", 2, 3, 2))
    np.testing.assert_allclose(result.hidden, exact.hidden, atol=TOL, rtol=0)
    assert [c.shape for c in result.codes] == [(7, 4 if site == "kv" else 2)] * 2


@pytest.mark.parametrize("kind", ["grouped", "residual"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [2, 5, 9])
def test_lossless_codebooks_give_the_exact_answer(family, site, kind, size):
    options = {"image": image_of(7)} if family == "vit" else {}
    module, config, weights = make(family, n_layers=3, **options)
    tokens = random_tokens(family, 7)
    owner = np.random.default_rng(size).integers(size, size=7)
    codec = lossless_codec(site, kind, module, family, tokens, 3)
    exact = oracle(config, weights, tokens, owner, 1)
    result = oracle(config, weights, tokens, owner, size, codec=codec)
    np.testing.assert_allclose(result.hidden, exact.hidden, atol=TOL, rtol=0)
    np.testing.assert_allclose(result.output, exact.output, atol=TOL, rtol=0)


def looped(config, weights, embedded, owner, size, codec):
    """The forward pass query by query and key by key: rows after the last block (class replicas averaged), codes.

    There is a class token if `embedded` has one row more than `owner`.
    """
    n_class = len(embedded) - len(owner)
    classes = [embedded[0] for _ in range(size * n_class)]  # one replica per rank
    content = list(embedded[n_class:])
    codes = []
    for i in range(config.n_layers):
        block = Block(config, weights, i, codec)
        sent = [block.send(x) for x in content]
        codes.append([code for code, _, _ in sent])
        new_classes, new_content = [], []
        for rank in range(size):
            pairs = [block.exact(x) for x in classes[rank : rank + 1]]
            for t, x in enumerate(content):
                pairs.append(block.exact(x) if owner[t] == rank else sent[t][1:])
            new_classes += [block.update(x, pairs) for x in classes[rank : rank + 1]]
            for t, x in enumerate(content):
                if owner[t] == rank:
                    new_content.append((t, block.update(x, pairs)))
        classes, content = new_classes, [x for _, x in sorted(new_content, key=lambda pair: pair[0])]
    return ([sum(classes) / size] if n_class else []) + content, codes


class Block:
    """One block on one row at a time."""

    def __init__(self, config, weights, i, codec):
        self.config, self.site, self.books = config, codec.config.site, codec.blocks[i].codebooks
        self.w = {n.removeprefix(f"blocks.{i}."): a.astype(float) for n, a in weights.items()}
        self.pre = config.family == "vit"

    def linear(self, x, name):
        weight = self.w[name + ".weight"]
        out = [sum(x[j] * weight[j, o] for j in range(len(x))) for o in range(weight.shape[1])]
        return np.array(out) + self.w.get(name + ".bias", 0.0)

    def norm(self, x, name):
        mean = sum(x) / len(x)
        variance = sum((x - mean) ** 2) / len(x)
        return (x - mean) / math.sqrt(variance + self.config.norm_eps) * self.w[name + ".weight"] + self.w[
            name + ".bias"
        ]

    def exact(self, x):
        n = self.norm(x, "norm1") if self.pre else x
        return self.linear(n, "k"), self.linear(n, "v")

    def send(self, x):
        """Codes of a row, and the key and the value that other ranks make of them."""
        if self.site == "kv":
            (key_codes, key), (value_codes, value) = map(nearest, self.books, self.exact(x))
            return key_codes + value_codes, key, value
        if self.site == "hidden":
            codes, seen = nearest(self.books[0], x)
            return codes, *self.exact(seen)
        codes, seen = nearest(self.books[0], self.norm(x, "norm1") if self.pre else x)
        return codes, self.linear(seen, "k"), self.linear(seen, "v")

    def update(self, x, pairs):
        q = self.linear(self.norm(x, "norm1") if self.pre else x, "q")
        d_head = D // self.config.n_heads
        mixed = np.zeros(D)
        for start in range(0, D, d_head):
            head = range(start, start + d_head)
            shares = [math.exp(sum(q[e] * key[e] for e in head) / math.sqrt(d_head)) for key, _ in pairs]
            for e in head:
                mixed[e] = sum(share * value[e] for share, (_, value) in zip(shares, pairs, strict=True)) / sum(shares)
        x = x + self.linear(mixed, "o")
        x = x if self.pre else self.norm(x, "norm1")
        inner = self.linear(self.norm(x, "norm2") if self.pre else x, "fc1")
        x = x + self.linear(np.array([y * (1 + math.erf(y / math.sqrt(2))) / 2 for y in inner]), "fc2")
        return x if self.pre else self.norm(x, "norm2")


def nearest(book, x):
    """Codes and approximation of one row; the lowest index wins a tie."""
    codes, width = [], book.entries.shape[2]
    if book.kind == "residual":
        left = x.copy()
        for stage in book.entries.astype(float):
            codes.append(min(range(len(stage)), key=lambda k: sum((stage[k] - left) ** 2)))
            left -= stage[codes[-1]]
        return codes, x - left
    padded = list(x) + [0.0] * (width * len(book.entries) - len(x))
    found = []
    for g, group in enumerate(book.entries.astype(float)):
        part = padded[g * width : (g + 1) * width]
        codes.append(min(range(len(group)), key=lambda k: sum((group[k] - part) ** 2)))
        found += list(group[codes[-1]])
    return codes, np.array(found[: len(x)])


@pytest.mark.parametrize("kind, n_codebooks", [("grouped", 1), ("grouped", 5), ("residual", 3)])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_three_tokens_on_two_ranks_by_loops(family, site, kind, n_codebooks):
    compare_with_loops(family, random_codec(site, kind, n_codebooks, 3, 1), [0, 1, 1], 2)


@pytest.mark.parametrize("owner, size", [([2, 0, 0, 2, 1], 3), ([0, 1, 1, 1, 3], 5), ([4, 4, 4, 4, 4], 6)])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_blocks_by_loops_with_ranks_that_own_nothing(family, owner, size):
    compare_with_loops(family, random_codec("hidden", "residual", 2, 4, 2), owner, size)


def compare_with_loops(family, codec, owner, size):
    n_layers = len(codec.blocks)
    options = {"image": image_of(len(owner)), "n_classes": 4} if family == "vit" else {}
    module, config, weights = make(family, n_layers=n_layers, **options)
    tokens = random_tokens(family, len(owner))
    base = module.vit if family == "vit" else module
    embedded = torch_forward(base, tokens, output_hidden_states=True).hidden_states[0][0].numpy()
    rows, codes = looped(config, weights, embedded, owner, size, codec)
    result = oracle(config, weights, tokens, owner, size, codec=codec)
    if family == "vit":
        hidden = base.layernorm(torch.as_tensor(np.array(rows))).detach().numpy()
        output = module.classifier(torch.as_tensor(hidden[0])).detach().numpy()
    else:
        hidden = np.array(rows)
        output = hidden.mean(axis=0) if family == "mean" else hidden[0]
    np.testing.assert_array_equal(result.codes, codes)
    np.testing.assert_allclose(result.hidden, hidden, atol=TOL, rtol=0)
    np.testing.assert_allclose(result.output, output, atol=TOL, rtol=0)
    if family != "mean" or len(set(owner)) > 1:  # some query does look at codes, and they matter
        exact = oracle(config, weights, tokens, owner, size)
        assert abs(result.hidden - exact.hidden).max() > 1e-3


@pytest.mark.parametrize("site, kind", [("hidden", "grouped"), ("normed", "residual"), ("kv", "residual")])
def test_own_codes_given_back_change_nothing(site, kind):
    _, config, weights = make_vit(image=image_of(5))
    pixels, owner, codec = random_tokens("vit", 5), [0, 1, 1, 2, 2], random_codec(site, kind, 4, 6, 2)
    own = oracle(config, weights, pixels, owner, 3, codec=codec)
    codes = [c.astype(np.uint8) for c in own.codes]
    again = oracle(config, weights, pixels, owner, 3, codec=codec, codes=codes)
    np.testing.assert_array_equal(again.hidden, own.hidden)
    np.testing.assert_array_equal(again.codes, own.codes)
    assert (again.flips, again.worst_gap) == (0, 0.0)


def test_wrong_codes_are_used_counted_and_measured():
    _, config, weights = make_bert(n_layers=1)
    ids, owner, codec = random_tokens("mean", 5), [0, 0, 1, 1, 1], random_codec("hidden", "grouped", 2, 4, 1)
    own = oracle(config, weights, ids, owner, 2, codec=codec)
    codes = own.codes[0].copy()
    codes[1, 0] = (codes[1, 0] + 1) % 4
    codes[4, 1] = (codes[4, 1] + 1) % 4
    result = oracle(config, weights, ids, owner, 2, codec=codec, codes=[codes])
    np.testing.assert_array_equal(result.codes[0], codes)
    assert result.flips == 2
    x = torch_embedding(ids)
    gaps = []
    for t, g in [(1, 0), (4, 1)]:
        entries = codec.blocks[0].codebooks[0].entries[g].astype(float)
        distances = np.sum((entries - x[t, 12 * g : 12 * g + 12]) ** 2, axis=1)
        gaps.append((distances[codes[t, g]] - distances.min()) / (distances[codes[t, g]] + x[t] @ x[t]))
    np.testing.assert_allclose(result.worst_gap, max(gaps), rtol=1e-9)
    assert result.worst_gap > 0.01
    assert abs(result.hidden - own.hidden).max() > 1e-3


def torch_embedding(ids):
    module, _, _ = make_bert(n_layers=1)
    return torch_forward(module, ids, output_hidden_states=True).hidden_states[0][0].numpy()


def test_residual_stages_are_judged_on_what_the_given_codes_left():
    _, config, weights = make_bert(n_layers=1)
    ids, owner, codec = random_tokens("mean", 3), [0, 1, 1], random_codec("hidden", "residual", 2, 4, 1)
    own = oracle(config, weights, ids, owner, 2, codec=codec).codes[0]
    codes = own.copy()
    codes[:, 0] = (codes[:, 0] + 1) % 4
    entries = codec.blocks[0].codebooks[0].entries.astype(float)
    left = torch_embedding(ids) - entries[0, codes[:, 0]]  # (3, D)
    codes[:, 1] = [np.argmin(np.sum((entries[1] - row) ** 2, axis=1)) for row in left]
    assert (codes[:, 1] != own[:, 1]).any()
    result = oracle(config, weights, ids, owner, 2, codec=codec, codes=[codes])
    assert result.flips == 3  # the first stages only


def test_near_ties_are_flips_with_a_gap_of_rounding_size():
    _, config, weights = make_bert(n_layers=1)
    ids, owner, codec = random_tokens("mean", 4), [0, 1, 0, 1], random_codec("hidden", "grouped", 1, 4, 1)
    book = codec.blocks[0].codebooks[0]
    nudged = book.entries * np.float32(1 + 1e-6)
    twins = book_of("grouped", np.stack([book.entries, nudged], axis=2).reshape(1, 8, D))
    codec.blocks = (block_of([twins]),)
    own = oracle(config, weights, ids, owner, 2, codec=codec)
    result = oracle(config, weights, ids, owner, 2, codec=codec, codes=[own.codes[0] ^ 1])
    assert result.flips == 4
    assert 0 < result.worst_gap < 1e-5
    twins.entries[0, 1::2] = twins.entries[0, ::2]
    tied = oracle(config, weights, ids, owner, 2, codec=codec)
    assert (tied.codes[0] % 2 == 0).all()  # the lowest index
    result = oracle(config, weights, ids, owner, 2, codec=codec, codes=[tied.codes[0] + 1])
    assert (result.flips, result.worst_gap) == (4, 0.0)


def test_codes_of_an_all_zero_row_tie_without_a_warning():
    _, config, weights = make_bert(n_layers=1)
    weights = weights | {name: 0 * weights[name] for name in ("embed.norm.weight", "embed.norm.bias")}
    codec = random_codec("hidden", "residual", 1, 2, 1, scale=0.0)
    codes = np.ones((3, 1), np.uint8)
    with np.errstate(all="raise"):
        result = oracle(config, weights, np.arange(3), [0, 0, 1], 2, codec=codec, codes=[codes])
    assert (result.flips, result.worst_gap) == (3, 0.0)


@pytest.mark.parametrize("wire", ["float16", "int8"])
@pytest.mark.parametrize("gather", ["x", "kv"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_rows_give_nearly_the_exact_answer(family, gather, wire):
    options = {"image": image_of(7)} if family == "vit" else {}
    _, config, weights = make(family, **options)
    tokens, owner = random_tokens(family, 7), [0, 0, 1, 1, 1, 2, 2]
    exact = oracle(config, weights, tokens, owner, 3)
    rounded = oracle(config, weights, tokens, owner, 3, wire=wire, gather=gather)
    off = abs(rounded.hidden - exact.hidden).max() / abs(exact.hidden).max()
    assert 1e-6 < off < (0.1 if wire == "int8" else 5e-3)
    alone = oracle(config, weights, tokens, [0] * 7, 1, wire=wire, gather=gather)
    np.testing.assert_allclose(alone.hidden, exact.hidden, atol=TOL, rtol=0)


def test_rounding_by_hand():
    x = np.array([[127.0, 0.5, -1.5, 0.49], [0, 0, 0, 0], [1 / 3, -0.1, 0.2, 0]])
    (rows,) = Rounded(np.zeros(3, int), "int8", "x", None)(0, x)
    np.testing.assert_allclose(rows[:2], [[127, 0, -2, 0], [0, 0, 0, 0]])
    assert abs(rows[2] - x[2]).max() <= 1 / 3 / 254
    keys, values = Rounded(np.zeros(1, int), "float16", "kv", None)(0, x[2:, :2], x[2:, 2:])
    np.testing.assert_array_equal(np.concatenate([keys, values], axis=1), x[2:].astype(np.float16))


def test_given_rounded_rows_are_used_and_judged():
    x = np.array([[127.0, 0.5 + 1e-7, -1.5, 0.2]])
    right, near, wrong = ([[127.0, 1, -2, 0]], [[127.0, 0, -2, 0]], [[127.0, 1, -2, 1]])
    found = []
    for rows in (right, near, wrong):
        rounded = Rounded(np.zeros(1, int), "int8", "x", [np.array(rows)])
        np.testing.assert_array_equal(rounded(0, x)[0], rows)
        found.append((rounded.flips, rounded.worst_gap))
    assert found[0] == (0, 0)
    assert found[1][0] == 1 and 0 < found[1][1] < 1e-8
    assert found[2] == (1, pytest.approx(0.6 / 127))


@pytest.mark.parametrize("family", FAMILIES)
def test_means_of_one_token_are_exact(family):
    options = {"image": image_of(7)} if family == "vit" else {}
    _, config, weights = make(family, **options)
    tokens, owner = random_tokens(family, 7), [0, 0, 1, 1, 1, 3, 3]
    exact = oracle(config, weights, tokens, owner, 4)
    np.testing.assert_allclose(
        oracle(config, weights, tokens, owner, 4, ratio=1).hidden, exact.hidden, atol=TOL, rtol=0
    )
    assert abs(oracle(config, weights, tokens, owner, 4, ratio=2).hidden - exact.hidden).max() > 1e-3


def test_means_of_a_slice():
    means = Means(np.array([0, 0, 0, 2, 2]), 2)
    np.testing.assert_array_equal(means.owner, [0, 0, 2])
    np.testing.assert_allclose(np.exp(means.bias), [2, 1, 2])
    np.testing.assert_array_equal(means(0, np.arange(5.0)[:, None])[0].ravel(), [0.5, 2, 3.5])


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_tokens_are_equal_to_their_mean(family):
    """Far slices of one repeated id at one position: a mean counted n times is n equal keys."""
    if family == "vit":
        pytest.skip("patches have positions of their own")
    _, config, weights = make(family, n_layers=1)
    n_class = int(family == "cls")
    ids, positions = np.array([3] * n_class + [1, 5, 5, 5, 5, 5]), np.array([0] * n_class + [1, 2, 2, 2, 2, 2])
    owner = [0, 1, 1, 1, 1, 1]
    exact = oracle(config, weights, ids, owner, 2, positions=positions)
    for ratio in (2, 3, 5):
        means = oracle(config, weights, ids, owner, 2, positions=positions, ratio=ratio)
        np.testing.assert_allclose(means.hidden, exact.hidden, atol=TOL, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoupled_blocks(family):
    """One sub-block with a block's own weights is that block; of several, none sees another's columns."""
    options = {"image": image_of(5)} if family == "vit" else {}
    _, config, weights = make(family, n_heads=4, **options)
    tokens, owner = random_tokens(family, 5), np.zeros(5, int)
    first = {name.removeprefix("blocks.0."): w for name, w in weights.items() if name.startswith("blocks.0.")}
    exact = oracle(config, weights, tokens, owner, 1)
    same = oracle(config, weights, tokens, owner, 1, parts=[[first], None])
    np.testing.assert_array_equal(same.hidden, exact.hidden)

    rng = np.random.default_rng(0)
    half = {name: rng.normal(0, 0.3, [n // 2 if n == D else n for n in w.shape]) for name, w in first.items()}
    other = {name: rng.normal(0, 0.3, w.shape) for name, w in half.items()}
    narrow = SimpleNamespace(**vars(config) | {"n_layers": 1, "n_classes": 0, "pooling": "cls", "normalize": False})
    last = {name: np.ones(D) if "weight" in name else np.zeros(D) for name in ("norm.weight", "norm.bias")}
    (a, b), (c, d) = (
        np.split(
            oracle(narrow, weights | last, tokens, owner[: 5 - (family == "mean")], 2, parts=[pair]).hidden, 2, axis=1
        )
        for pair in ([half, half], [half, other])
    )
    if family != "vit":  # its final norm mixes columns
        np.testing.assert_array_equal(a, c)
    assert abs(b - d).max() > 0.1
