"""Strategies in one word."""

import pytest

from astra_mpi.errors import InputError
from astra_mpi.strategies import STRATEGIES, forms, parse


@pytest.mark.parametrize(
    ("text", "told", "values"),
    [
        ("single", "single", {}),
        ("sp", "sp", {"gather": "x", "wire": "float32"}),
        ("sp:x:float32", "sp", {"gather": "x", "wire": "float32"}),
        ("sp:int8", "sp:int8", {"gather": "x", "wire": "int8"}),
        ("bp:ag:1", "bp", {"form": "ag", "groups": 1}),
        ("bp:ag:2", "bp:2", {"form": "ag", "groups": 2}),
        ("bp:3:sp", "bp:sp:3", {"form": "sp", "groups": 3}),
        ("segment_means", "segment_means:8", {"ratio": 8}),
        ("segment_means:4", "segment_means:4", {"ratio": 4}),
        ("astra:inputs", "astra:inputs", {"first": "inputs", "codes": "fresh"}),
        ("astra:codes", "astra", {"first": "codes", "codes": "fresh"}),
        ("astra:late:inputs", "astra:inputs:late", {"first": "inputs", "codes": "late"}),
        ("sp:float16:kv", "sp:kv:float16", {"gather": "kv", "wire": "float16"}),
    ],
)
def test_spec(text, told, values):
    spec = parse(text)
    assert (str(spec), spec.values) == (told, values)
    assert parse(told) == spec


@pytest.mark.parametrize(
    "text",
    ["", "spp", "sp:", "sp:q", "sp:x:kv", "sp:int8:int8", "sp:2", "single:x", "astra:4", "tp:2", "bp:0", "bp:1:2"],
)
def test_what_does_not_exist(text):
    with pytest.raises(InputError, match="use one of single, sp") as caught:
        parse(text)
    for name in STRATEGIES:
        assert name in str(caught.value)


def test_keys_beside_the_text():
    assert str(parse("sp", gather="kv", wire=None)) == "sp:kv"
    assert str(parse("sp:int8", gather="kv", wire="int8")) == "sp:kv:int8"
    assert str(parse("single", gather="kv")) == "single"
    with pytest.raises(InputError, match="'sp:kv' and gather = 'x' contradict each other"):
        parse("sp:kv", gather="x")
    with pytest.raises(InputError, match="wire = 'int4' is unknown; use float32 or float16 or int8"):
        parse("sp", wire="int4")


def test_forms():
    assert forms("single") == ["single"]
    assert forms("sp") == ["sp", "sp:float16", "sp:int8", "sp:kv", "sp:kv:float16", "sp:kv:int8"]
    assert forms("bp") == ["bp", "bp:sp"]
    assert forms("segment_means") == ["segment_means:8"]
    assert forms("sp:x") == ["sp"]
    assert forms("bp:2") == ["bp:2"]
    assert forms("astra") == ["astra", "astra:inputs"] and forms("astra:late") == ["astra:late"]
