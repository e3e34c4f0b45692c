"""The classes of a checkpoint's head: how many, what they are called, and how logits are told."""

from __future__ import annotations

from typing import Any

from astra_mpi.checkpoint.config import HFConfig, shown
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require

#: what turns logits into probabilities
PROBABILITIES = ("softmax", "sigmoid", "none")
#: what turns the one logit of a cross-encoder into a score; "other": a function that is not known here
SCORES = ("sigmoid", "identity", "other")
_PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Identity": "identity"}


def text_classes(hf: HFConfig, tensors: Tensors, head: str) -> dict[str, Any]:
    """Fields of a text encoder's config that its sequence classifier decides; {} for a model without one.

    head: the tensor of the last layer's weight. transformers' classes say which head is meant, for a classifier of
    tokens may have tensors of the same name. InputError on labels, numbers or problems that contradict each other.
    """
    if hf.bare or not any(name.endswith("ForSequenceClassification") for name in hf.architectures):
        return {}
    n_classes = count_classes(hf)
    problem = hf.get("problem_type")
    hf.only("problem_type", _PROBLEMS)
    require(n_classes > 0, "num_labels = 0: a classifier has at least one class")
    require(
        problem != "single_label_classification" or n_classes > 1,
        'problem_type = "single_label_classification" needs two classes or more; num_labels says 1',
    )
    tensor = tensors.find(head)
    require(
        tensor is None or tensor.shape[:1] == (n_classes,),
        f"num_labels or id2label give {n_classes} classes, but {head} has shape {tensor.shape if tensor else ()}",
    )
    labels = () if tensor is None else class_names(hf, n_classes)
    several = "sigmoid" if problem == "multi_label_classification" or n_classes == 1 else "softmax"
    return {
        "n_classes": n_classes,
        "labels": labels,
        "probabilities": "none" if problem == "regression" else several,
        "scores": _scores(hf, n_classes),
    }


def count_classes(hf: HFConfig) -> int:
    """As many as id2label names, or as num_labels says. InputError if id2label does not name 0 and on."""
    named, given = hf.get("id2label"), hf.get("num_labels") is not None or "num_labels" in hf.values
    good = named is None or (isinstance(named, dict) and set(named) == set(map(str, range(len(named)))))
    require(good, f"id2label = {shown(named)} must name each of its classes, 0 and on")
    n_named = 2 if named is None else len(named)
    return hf.integer("num_labels", at_least=0) if given else n_named


def class_names(hf: HFConfig, n_classes: int) -> tuple[str, ...]:
    """Those of id2label, or numbered ones where it names another number of classes. n_classes: as the head has them,
    for num_labels may say any number."""
    named = hf.get("id2label")
    if named is None or len(named) != n_classes:
        return tuple(f"LABEL_{i}" for i in range(n_classes))
    return tuple(str(named[str(i)]) for i in range(n_classes))


def _scores(hf: HFConfig, n_classes: int) -> str:
    """What sentence-transformers' CrossEncoder makes of the logit."""
    own, older = hf.get("sentence_transformers"), hf.get("sbert_ce_default_activation_function")
    function = own.get("activation_fn", older) if isinstance(own, dict) else older
    if function is None:
        return "sigmoid" if n_classes == 1 else "identity"
    return (
        _ACTIVATIONS.get(str(function).rpartition(".")[2], "other") if str(function).startswith("torch.") else "other"
    )
