"""Small tokenizers."""

import json
import re

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

LETTERS = "abcdefghij klmnop.\n"


def letter_tokenizer(begin=True):
    """A token per letter; <s> begins a text and </s> ends one, as some tokenizers have it."""
    vocab = {"<s>": 0, "</s>": 1} | {letter: i for i, letter in enumerate(LETTERS, 2)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    s, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    tokens = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in enumerate(("<s>", "</s>"))}
    template = {"type": "TemplateProcessing", "single": [s, text, end], "pair": [s, text], "special_tokens": tokens}
    found = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in enumerate(("<s>", "</s>"))],
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    return json.dumps(found | ({"post_processor": template} if begin else {}))


WORDS = re.findall(r"\S+", "the quick brown fox jumps over a lazy dog while it rains in spain . , ! ? ##s ##ing é 語 ß")


def byte_pairs():
    """As GPT-2's: bytes, merged across spaces, nothing around a text."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator([" ".join(WORDS) * 3], trainer)
    return fast.to_str()


def chat_tokenizer():
    """Byte pairs, with the special tokens of chat templates."""
    fast = FastTokenizer.from_str(byte_pairs())
    fast.add_special_tokens(["<s>", "<|im_start|>", "<|im_end|>"])
    return fast


TEXT = "the cat sat on the hat, and that was that. " * 4


def byte_tokenizer():
    """One token per letter of the text."""
    vocab = {letter: i for i, letter in enumerate(sorted(set(TEXT)))}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model})
