"""Tokenizers and sentence-transformers folders give the answers of transformers and of sentence-transformers.

jobs/checks/differential_text.py does at length what is done here for a selection.
"""

import json
import shutil

import differential_text as job
import h5py
import numpy as np
import pytest
import transformers
from differential_text_fields import Change, sentence_changes, tokenizer_changes, uncovered
from differential_text_folders import FOLDERS, put, sentence_encoder
from sentence_transformers import SentenceTransformer  # here, for it takes longer than a test may

from astra_mpi.cli import main
from astra_mpi.convert.hugging_face import convert
from astra_mpi.convert.text import read_text_settings
from astra_mpi.convert.tokenizer_classes import CLASSES
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import read_model, write_model
from astra_mpi.inputs.passages import passages
from astra_mpi.inputs.text import Tokenizer, prompt_of, tokenizer_of
from helpers.fakes import bert_config

#: a folder per class of tokenizer, and those that have no tokenizer.json
ENCODERS = ("gemma", "distilbert", "mpnet", "camembert", "roberta", "xlm-roberta")
FAST = ("bert", "bert-backend", "bert-vocab", "bert-xlm", "gpt2", "gpt2-files", "llama", "llama-qwen2", "llama-roberta")


@pytest.fixture(scope="module", autouse=True)
def quiet_libraries():
    job.silence()


def check(name, changes, scratch):
    rows = list(job.rows_of(name, changes, scratch, first=True))
    assert len(rows) > len({(change.file, change.key) for change in changes}) * 0.8
    assert [row for row in rows if row.outcome == "MISMATCH"] == []
    assert sum(row.detail == "another answer than before" for row in rows) > 3  # the changes do change something


@pytest.mark.parametrize("name", FAST)
def test_every_setting_of_the_tokenizer_with_another_value(name, tmp_path):
    check(name, tokenizer_changes(), tmp_path)


def test_every_setting_of_the_sentence_encoder_with_another_value(tmp_path):
    check(job.SENTENCES, sentence_changes(), tmp_path)


def test_every_class_of_tokenizer_has_its_folder(tmp_path):
    made = set()
    for name in (*FAST, *ENCODERS):
        FOLDERS[name](tmp_path / name)
        made.add(read_text_settings(tmp_path / name, bert_config(vocab_size=2000), None).preprocess["tokenizer_class"])
    assert [kind.name for kind in CLASSES if not made & {kind.name, *kind.aliases}] == []


@pytest.mark.parametrize("name", ["bert", *ENCODERS])
def test_tokens_and_types_of_texts_and_pairs(name, tmp_path):
    FOLDERS[name](tmp_path / "hf")
    text = read_text_settings(tmp_path / "hf", bert_config(vocab_size=2000), None)
    ours = tokenizer_of(text.tokenizer, 2000, preprocess=text.preprocess, type_vocab=2)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = [*job.TEXTS, "a <mask> or [MASK] here"]
    alone = name == "gemma"  # whose template is of single texts
    for items in (texts,) if alone else (texts, list(zip(texts, reversed(texts), strict=True))):
        want = theirs(items, truncation=True, max_length=13)
        rows = ours.encode_typed(items, 13)
        typed = "token_type_ids" in want and any(map(any, want["token_type_ids"]))
        assert all(row.ndim == 1 + typed for row in rows) and typed == (name == "bert" and items is not texts)
        assert [(row[:, 0] if typed else row).tolist() for row in rows] == want["input_ids"]
        assert not typed or [row[:, 1].tolist() for row in rows] == want["token_type_ids"]


def test_changes_cover_what_the_installed_libraries_read():
    assert uncovered() == []


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder of a sentence encoder; copies of it are changed."""
    folder = tmp_path_factory.mktemp("encoder") / "hf"
    sentence_encoder(folder)
    return folder


@pytest.fixture
def folder(encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "hf")
    return tmp_path / "hf"


def changed(folder, file, **keys):
    for key, value in keys.items():
        job.edit(folder, Change(file, key, value))
    return folder


def made(folder):
    path = folder.parent / "m.h5"
    write_model(path, convert(folder)[0])
    return path


TEXTS = ["Paris is a city", "the dog", "Café GRÖSSE", "the quick brown fox jumps " * 9]


def encoded(folder, texts=TEXTS, **options):
    return SentenceTransformer(str(folder), device="cpu").encode(texts, **options)


def run_deck(path, *overrides, texts=TEXTS):
    """Embeddings of texts by the command line."""
    folder = path.parent
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "deck.toml").write_text(
        '[model]\npath = "m.h5"\n[input]\npath = "in.jsonl"\nkind = "text"\n[task]\nname = "embed"\n'
        '[parallel]\nstrategy = "single"\n[run]\nresume = false\n[output]\npath = "out.h5"\n'
    )
    code = main(["run", str(folder / "deck.toml"), *overrides])
    if code:
        return code
    with h5py.File(folder / "out.h5") as file:
        return file["outputs/embedding"][:]


def test_settings_that_tokenizer_json_contradicts(tmp_path):
    """03 and 04: tokenizer_config.json wins, and a BertTokenizer puts [CLS] and [SEP] whatever the file has."""
    import transformers

    FOLDERS["bert"](tmp_path / "hf")
    changed(tmp_path / "hf", "tokenizer.json", post_processor=None)
    changed(tmp_path / "hf", "tokenizer_config.json", do_lower_case=False, tokenize_chinese_chars=False)
    text = read_text_settings(tmp_path / "hf", bert_config(vocab_size=400), None)
    assert "normalizer, post_processor gave way to what BertTokenizer makes of tokenizer_config.json" in text.notes[0]
    ours = tokenizer_of(text.tokenizer, 400).encode(TEXTS, 40)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")(TEXTS, truncation=True)["input_ids"]
    assert [row.tolist() for row in ours] == theirs
    assert {row[0] for row in theirs} == {2} and {row[-1] for row in theirs} == {3}


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("sentence_bert_config.json", dict(do_lower_case=True)),  # 06
        ("sentence_bert_config.json", dict(max_seq_length=46)),  # 07: above the tokenizer's 40
        ("config_sentence_transformers.json", dict(default_prompt_name="query")),  # 08
        ("config_sentence_transformers.json", dict(truncate_dim=5)),
        ("tokenizer_config.json", dict(truncation_side="left")),
    ],
)
def test_run_gives_the_embeddings_of_sentence_transformers(folder, file, keys):
    changed(folder, file, **keys)
    want = encoded(folder)
    got = run_deck(made(folder))
    assert got.shape == want.shape
    assert abs(got - want).max() < 1e-5


def test_prompts_are_chosen_by_name(folder, capsys):
    changed(folder, "config_sentence_transformers.json", default_prompt_name="query")
    path = made(folder)
    for override, options in [
        ("task.prompt=passage", dict(prompt_name="passage")), ("task.prompt=query", {}),
        ("task.prompt=false", dict(prompt="")), ('task.prompt=""', dict(prompt="")),
    ]:  # fmt: skip
        assert abs(run_deck(path, override) - encoded(folder, **options)).max() < 1e-5
    capsys.readouterr()
    assert run_deck(path, "task.prompt=qurey") == 2
    assert "prompt 'qurey' is not one of this model's; give one of passage, query" in capsys.readouterr().err
    assert run_deck(path, "task.name=classify", "task.prompt=query") == 2
    np.save(path.parent / "ids.npy", np.ones((2, 3), int))
    assert run_deck(path, "input.path=" + str(path.parent / "ids.npy"), "input.kind=tokens", "task.prompt=query") == 2
    assert "task.prompt is for input.kind = 'text' only" in capsys.readouterr().err


def test_a_text_that_spells_a_token_without_a_row_is_named(folder, capsys):
    """10: such a token is a note; only a text that gives it is an error."""
    changed(folder, "tokenizer_config.json", extra_special_tokens=[f"<new{i}>" for i in range(12)])
    model, notes = convert(folder)
    beyond = Tokenizer(model.tokenizer).beyond(model.config.vocab_size)
    assert len(beyond) == 4 and any(f"4 of the tokenizer's tokens ('{beyond[0]}'" in note for note in notes)
    path = made(folder)
    texts = ["the dog", "<new0> dog", f"the {beyond[1]} fox"]
    assert run_deck(path, texts=texts) == 2
    message = capsys.readouterr().err
    assert "in.jsonl: item 2 has the token" in message and beyond[1] in message
    assert abs(run_deck(path, texts=texts[:2]) - encoded(folder, texts[:2])).max() < 1e-5


def test_tokens_that_no_text_gives_are_no_obstacle():
    """Byte pairs that no merge makes, as placeholders are kept in a vocabulary."""
    contents = json.loads(Tokenizer(byte_pairs())._fast.to_str())
    n = len(contents["model"]["vocab"])
    contents["model"]["vocab"]["<placeholder>"] = n
    Tokenizer(json.dumps(contents)).check_fits(n)
    contents["model"]["ignore_merges"] = True
    with pytest.raises(InputError, match="does not fit the model"):
        Tokenizer(json.dumps(contents)).check_fits(n)


def byte_pairs():
    from differential_text_folders import byte_level

    return byte_level().to_str()


def test_convert_and_info_print_what_was_taken(folder, capsys):
    changed(folder, "config_sentence_transformers.json", default_prompt_name="query", truncate_dim=5)
    changed(folder, "tokenizer_config.json", chat_template="{{ messages }}", strange=1)
    path = folder.parent / "m.h5"
    assert main(["convert", str(folder), str(path)]) == 0
    told = capsys.readouterr().out
    for line in (
        r"pooling        mean, the first 5 numbers of 24", "normalisation  to length 1", "maximum length 30 tokens",
        "prompts        query 'query: ' (default), passage 'passage: '", "tokenizer      BertTokenizer",
        "tokenizer_config.json: chat_template (texts are taken as they are", "strange (not known)",
    ):  # fmt: skip
        assert line in told
    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "usage.maximum length              30 tokens" in shown and "usage.prompts" in shown
    assert main(["convert", str(path), str(path.parent / "again.h5"), "--dtype", "float16"]) == 0
    assert "strange (not known)" in capsys.readouterr().out


def test_a_model_without_output_truncation_keeps_the_digest_of_before(folder):
    assert "embedding_size" not in json.loads(h5py.File(made(folder)).attrs["config"])


def test_passages_leave_room_for_the_prompt(folder):
    changed(folder, "config_sentence_transformers.json", default_prompt_name="query")
    model = convert(folder)[0]
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess, prompt=None)
    plain = tokenizer_of(model.tokenizer, model.config.vocab_size)
    text = "the quick brown fox jumps over the lazy dog. " * 20
    cut = passages(text, tokenizer, 13)
    assert max(tokenizer.count(cut)) <= 13 < max(tokenizer.count(passages(text, plain, 13)))
    with pytest.raises(InputError, match="leaves no room beside 4 tokens of the prompt 'query: '"):
        tokenizer.check_room(tokenizer.n_fixed)


def test_calibrate_puts_the_prompt_before_texts(folder, tmp_path):
    changed(folder, "config_sentence_transformers.json", default_prompt_name="query")
    path = made(folder)
    (tmp_path / "data.txt").write_text("".join(f"{text}\n" for text in TEXTS * 3))
    (tmp_path / "queries.txt").write_text("".join(f"query: {text}\n" for text in TEXTS * 3))
    books = {}
    for name, data, more in [
        ("default", "data", []), ("named", "data", ["--prompt", "query"]), ("other", "data", ["--prompt", "passage"]),
        ("spelled", "queries", ["--prompt", ""]),
    ]:  # fmt: skip
        out = tmp_path / f"{name}.h5"
        command = ["calibrate", str(path), "--data", str(tmp_path / f"{data}.txt"), "-o", str(out), "--stages", "1"]
        assert main([*command, "--codebook-size", "4", *more]) == 0
        books[name] = read_model(out).codec.digest
    assert books["default"] == books["named"] == books["spelled"] != books["other"]


def test_prompt_of_refuses_what_the_model_does_not_have():
    assert prompt_of({"prompts": {"a": "x "}, "default_prompt": "a"}, None) == "x "
    assert prompt_of({"prompts": {"a": "x "}}, None) == prompt_of(None, None) == prompt_of(None, False) == ""
    with pytest.raises(InputError, match="give none, for it has no prompts"):
        prompt_of(None, "query")
    with pytest.raises(InputError, match="prompts of the model file are damaged"):
        prompt_of({"prompts": ["x"]}, "x")


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("modules.json", {"0.type": "code.Transformer"}, r"modules\.json has a module of type code\.Transformer"),
        ("modules.json", {"0.path": "nowhere"}, r"gives the Transformer the path \S*nowhere, which is no folder"),
        ("1_Pooling/config.json", dict(pooling_mode="max"), r"1_Pooling/config\.json: pooling_mode max"),
        (
            "sentence_bert_config.json",
            dict(model_args={"num_hidden_layers": 1}),
            r"model_kwargs \(model_args\) has num_hid",
        ),
        (
            "tokenizer_config.json",
            dict(tokenizer_class="T5Tokenizer"),
            r"tokenizer_class = 'T5Tokenizer' is not support",
        ),
        ("tokenizer_config.json", dict(auto_map={"AutoTokenizer": ["a.B", None]}), "auto_map names code in the folder"),
        ("tokenizer_config.json", dict(do_lower_case="yes"), "do_lower_case = 'yes' is of the wrong type; give bool"),
        ("tokenizer.json", {"model.dropout": 0.1}, r"tokenizer\.json: model\.dropout = 0\.1 makes tokens at random"),
    ],
)
def test_what_is_refused_is_named(folder, file, keys, message):
    changed(folder, file, **keys)
    with pytest.raises(InputError, match=message):
        convert(folder)


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("tokenizer.json", dict(model=[])), ("tokenizer.json", dict(added_tokens=[1])),
        ("tokenizer.json", dict(normalizer=[3])), ("tokenizer_config.json", dict(model_input_names=[[]])),
        ("tokenizer_config.json", dict(added_tokens_decoder={"x": {}})),
        ("tokenizer_config.json", dict(extra_special_tokens=[{}])), ("tokenizer_config.json", dict(cls_token={"a": 1})),
        ("special_tokens_map.json", dict(cls_token={"a": 1})), ("added_tokens.json", {"x": []}),
        ("config_sentence_transformers.json", dict(default_prompt_name=[])), ("modules.json", {"1.path": 7}),
        ("config_sentence_transformers.json", dict(prompts=[1])), ("1_Pooling/config.json", dict(pooling_mode={})),
        ("sentence_bert_config.json", dict(processing_kwargs={"text": 3})), ("modules.json", {"1": 7}),
    ],
)  # fmt: skip
def test_values_that_nobody_expects_are_one_sentence(folder, file, keys):
    changed(folder, file, **keys)
    with pytest.raises(InputError):
        convert(folder)


def test_a_pooling_of_a_decoder_is_refused(folder):
    import transformers

    config = transformers.GPT2Config(vocab_size=320, n_embd=24, n_head=3, n_layer=1, n_positions=40)
    transformers.GPT2Model(config).save_pretrained(folder)
    put(folder / "1_Pooling" / "config.json", {"embedding_dimension": 24, "pooling_mode": "mean"})
    with pytest.raises(
        InputError, match=r"modules\.json makes embeddings with a gpt2 model \(pooling mean\), which is not"
    ):
        convert(folder)


def test_results_of_another_tokenizer_are_not_gone_on_with(folder, capsys):
    path = made(folder)
    run_deck(path)
    changed(folder, "tokenizer_config.json", do_lower_case=True)
    made(folder)
    assert run_deck(path, "run.resume=true") == 2
    assert "holds results with text_digest" in capsys.readouterr().err


def test_a_tokenizer_that_transformers_would_spoil_is_taken_as_it_stands(tmp_path):
    """Without a tokenizer_config.json, AutoTokenizer adds [CLS] and [SEP], for which this model has no rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = transformers.BertConfig(
        vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    plain = Tokenizer(models.WordLevel({f"w{i}": i for i in range(24)}, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.save(str(tmp_path / "tokenizer.json"))
    model, notes = convert(tmp_path)
    assert any("tokenizer.json was taken as it stands" in note for note in notes)
    ids = tokenizer_of(model.tokenizer, 24).encode(["w3 w5"], 8)[0]
    assert ids.tolist() == [3, 5]
