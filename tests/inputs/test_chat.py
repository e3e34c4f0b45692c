"""Chat templates: the text and ids that transformers makes of them, and those that fail, loop or reach out."""

import json
import time

import pytest

from astra_mpi.convert.text import read_text_settings
from astra_mpi.errors import InputError
from astra_mpi.inputs import template
from astra_mpi.inputs.chat import ChatTemplate, check_messages
from astra_mpi.inputs.text import Tokenizer
from helpers.chat_templates import TEMPLATES, THINKING
from helpers.fakes import llama_config
from helpers.tokenizers import byte_pairs

HELLO = {"role": "user", "content": "  the quick <b>fox</b> & é 語 \n"}
CONVERSATIONS = [
    [HELLO],
    [{"role": "system", "content": "be brief"}, HELLO],
    [HELLO, {"role": "assistant", "content": "<think>hm</think>\nit jumps", "name": None}, HELLO],
    [HELLO, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"é": [1, "<"]}}}]}],
    [HELLO, HELLO],
]


def write_folder(folder, own=None, **files):
    """A folder with a tokenizer of byte pairs and some special tokens."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(byte_pairs())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>"}
    settings["additional_special_tokens"] = ["<|im_start|>"]
    if own is not None:
        settings["chat_template"] = own
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, text in files.items():
        (folder / name.replace("__", "/")).with_suffix(".jinja").parent.mkdir(exist_ok=True)
        (folder / name.replace("__", "/")).with_suffix(".jinja").write_text(text)
    return folder


def kept(folder):
    """What the model file of such a folder keeps."""
    return read_text_settings(folder, llama_config(vocab_size=400), None)


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    folder = write_folder(tmp_path / "model", TEMPLATES[name])
    reference, text = transformers.AutoTokenizer.from_pretrained(folder), kept(folder)
    assert not any("chat_template" in key for key in text.left_aside)
    chat, tokenizer = ChatTemplate(text.preprocess), Tokenizer(text.tokenizer)
    assert chat.special_tokens == reference.special_tokens_map
    n_rendered = 0
    for messages in CONVERSATIONS:
        for answers in (True, False):
            settings = dict(add_generation_prompt=answers, tokenize=False)
            try:
                want = reference.apply_chat_template(messages, **settings)
            except Exception as exc:
                with pytest.raises(InputError) as found:
                    chat.render(messages, answers)
                assert str(exc) in str(found.value)
                continue
            got = chat.render(messages, answers)
            assert got == want
            ids = reference.apply_chat_template(messages, add_generation_prompt=answers, return_dict=False)
            assert tokenizer.encode_plain(got, "it").tolist() == ids
            n_rendered += 1
    assert n_rendered >= 4


def test_templates_of_a_folder_are_found_as_transformers_finds_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    folders = [
        write_folder(tmp_path / "named", several),
        write_folder(tmp_path / "file", "old", chat_template="new"),
        write_folder(tmp_path / "more", None, chat_template="new", additional_chat_templates__rag="r"),
        write_folder(tmp_path / "none"),
    ]
    for folder in folders:
        want = transformers.AutoTokenizer.from_pretrained(folder).chat_template
        assert kept(folder).preprocess.get("chat_template") == want
    settings = kept(folders[0]).preprocess
    assert ChatTemplate(settings).render([HELLO]) == "a" and ChatTemplate(settings, "tool_use").render([HELLO]) == "b"
    with pytest.raises(InputError, match="no chat template 'x'; choose one of default, tool_use"):
        ChatTemplate(settings, "x")
    with pytest.raises(InputError, match="has no chat template, so nobody knows"):
        ChatTemplate(kept(folders[3]).preprocess)
    assert ChatTemplate({"chat_template": THINKING}).render(CONVERSATIONS[2]).count("think") == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x * 2 %}{% endfor %}", "MiB"),
        ("{{ 10 ** (10 ** 9) }}", "a power of more than"),
        ("{{ range(10 ** 9) }}", "fails"),
        ("{% import 'os' as os %}{{ os.getcwd() }}", "another template, 'os'"),
        ("{{ ''.__class__.__mro__ }}", "reaches for what a template may not have"),
        ("{{ messages.append(1) }}", "reaches for what a template may not have"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "reaches for what a template may not have"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "reaches for what a template may not have"),
        ("{{ raise_exception('no such role') }}", "refuses this conversation (no such role)"),
        ("{% if %}", "is no Jinja at line 1"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("x" * 50_000, "has 50000 characters"),
    ],
)
def test_templates_that_fail_say_so_in_a_sentence(monkeypatch, source, words):
    monkeypatch.setattr(template, "MAX_STEPS", 200_000)
    started = time.monotonic()
    with pytest.raises(InputError) as found:
        ChatTemplate({"chat_template": source}).render([HELLO])
    assert words in str(found.value) and "\n" not in str(found.value)
    assert time.monotonic() - started < 20


def test_messages_are_checked():
    assert check_messages("x", CONVERSATIONS[3]) == CONVERSATIONS[3]
    for messages, words in [
        ("hello", "a list of objects"),
        ([], "a list of objects"),
        (["hello"], "message 0 has no role"),
        ([HELLO, {"role": "user"}], r"message 1 \(user\) has no content"),
        ([{"role": "user", "content": "\udc80"}], "not UTF-8"),
    ]:
        with pytest.raises(InputError, match=words):
            check_messages("line 3", messages)
