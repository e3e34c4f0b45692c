"""Text encoders and classifiers: the answers of transformers, whatever the padding."""

import numpy as np
import pytest
import transformers
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.hugging_face import convert
from astra_mpi.files.modelfile import write_model
from helpers.checkpoints import LEFT, RIGHT, close, outputs

SHAPE = dict(hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=37, vocab_size=53)
SHAPE |= dict(max_position_embeddings=20)
DISTIL = dict(dim=24, n_heads=3, n_layers=2, hidden_dim=37, vocab_size=53, max_position_embeddings=20)
MODERN = SHAPE | dict(pad_token_id=0, cls_token_id=1, bos_token_id=1, eos_token_id=2, sep_token_id=2)
EURO = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, mask_token_id=3)
#: class of transformers without its head, settings
ENCODERS = {
    "roberta": ("Roberta", SHAPE | dict(type_vocab_size=1, pad_token_id=1)),
    "xlm-roberta": ("XLMRoberta", SHAPE | dict(type_vocab_size=1, hidden_act="gelu_new", pad_token_id=3)),
    "camembert": ("Camembert", SHAPE | dict(type_vocab_size=2, hidden_act="relu", pad_token_id=0)),
    "distilbert": ("DistilBert", DISTIL | dict(activation="gelu")),
    "electra": ("Electra", SHAPE | dict(embedding_size=15, type_vocab_size=3)),
    "electra-wide": ("Electra", SHAPE | dict(embedding_size=24, hidden_act="silu")),
    "bert": ("Bert", SHAPE),
    "mpnet": ("MPNet", SHAPE | dict(max_position_embeddings=40)),
    "nomic": ("NomicBert", SHAPE | dict(type_vocab_size=2, pad_token_id=0)),
    "modernbert": ("ModernBert", MODERN | dict(local_attention=7, num_hidden_layers=4)),
    "modernbert-biased": (
        "ModernBert",
        MODERN
        | dict(
            local_attention=4,
            norm_bias=True,
            attention_bias=True,
            mlp_bias=True,
            classifier_bias=True,
            classifier_pooling="mean",
            classifier_activation="silu",
        ),
    ),
    "eurobert": ("EuroBert", SHAPE | dict(num_key_value_heads=1, attention_bias=True, **EURO)),
    "eurobert-bos": ("EuroBert", SHAPE | dict(classifier_pooling="bos", mlp_bias=True, **EURO)),
}


def saved(folder, name, head="Model", seed=0, **more):
    """A model of transformers with no parameter at its initial value, in `folder` and returned."""
    import torch

    torch.manual_seed(seed)
    kind, settings = ENCODERS[name]
    config = getattr(transformers, f"{kind}Config")(**settings | more)
    model = getattr(transformers, kind + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def padded(mask, pad, seed=0):
    """Random ids (B, T), the padding token where the mask has no token and never elsewhere."""
    ids = np.random.default_rng(seed).integers(4, 53, mask.shape)
    return np.where(mask, ids, 0 if pad is None else pad)


def load(folder, **options):
    path = folder / "model.h5"
    write_model(path, convert(folder)[0])
    return astra_mpi.load(str(path), comm=MPI.COMM_SELF, strategy="single", **options)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name, tmp_path):
    """Hidden states and embeddings, padded left and right, lengths from 1 to 13."""
    theirs = saved(tmp_path, name)
    ours = load(tmp_path)
    for mask in (RIGHT, LEFT):
        ids = padded(mask, theirs.config.pad_token_id)
        want = outputs(theirs, input_ids=ids, attention_mask=mask.astype(np.int64))["last_hidden_state"]
        answer, hidden = ours(ids, mask, gather=True)
        for kept, rows, got in zip(mask, want, hidden, strict=True):
            close(got[: kept.sum()], rows[kept])
        close(answer, (want * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True))


CLASSIFIERS = (
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "mpnet",
    "nomic",
    "modernbert",
    "modernbert-biased",
    "eurobert",
)
CLASSIFIERS += ("eurobert-bos",)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, tmp_path):
    """Logits of texts and of pairs with token types; names of classes; the encoder without its head."""
    names = {0: "no", 1: "yes", 2: "perhaps"}
    theirs = saved(tmp_path, name, "ForSequenceClassification", id2label=names)
    ours = load(tmp_path)
    assert ours.config.labels == tuple(names.values()) and ours.config.probabilities == "softmax"
    for mask in (RIGHT, LEFT):
        ids = padded(mask, theirs.config.pad_token_id)
        types = (np.arange(13) > 6) * mask.astype(np.int64)
        # with padding on the left, transformers would classify the padding
        given = dict(
            zip(("input_ids", "position_ids", "token_type_ids"), pushed(mask, ids, np.arange(13), types), strict=True)
        )
        given["attention_mask"] = RIGHT.astype(np.int64)
        if ours.config.pad_token >= 0:
            del given["position_ids"]
        if ours.config.type_vocab > 1:
            close(ours(np.stack([ids, types], axis=2), mask), outputs(theirs, **given)["logits"])
        del given["token_type_ids"]
        close(ours(ids, mask), outputs(theirs, **given)["logits"])
    rows = outputs(theirs.base_model, **given)["last_hidden_state"]
    close(load(tmp_path, pooling="mean")(ids, mask), (rows * RIGHT[..., None]).sum(1) / RIGHT.sum(1, keepdims=True))


def pushed(mask, ids, *more):
    """Arrays (B, T) with what the mask keeps pushed to the left; of ids, padding stays behind."""
    order = np.argsort(~mask, axis=1, kind="stable")
    return [np.take_along_axis(np.broadcast_to(array, mask.shape), order, axis=1) for array in (ids, *more)]
