"""Reports: what is read, what is said, a page that is whole, escaped and self-contained, and the plots."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from astra_mpi.errors import InputError
from astra_mpi.files.figure import missing_matplotlib
from astra_mpi.measure.charts import line_charts, phase_bars, shown_conditions
from astra_mpi.measure.page import page
from astra_mpi.measure.plots import _plain, draw_all
from astra_mpi.measure.published import PUBLISHED, scheme_of
from astra_mpi.measure.runs import read_runs
from astra_mpi.measure.verdict import condition, verdict
from helpers.reports import CODEC, one

drawn = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib (extra plot) is not installed")

NASTY = "<script src=http://evil.example/x.js>alert(1)</script>\"'&$x_"
VOID = ("meta", "img", "br", "hr", "link")


def trio(network="10Mbps,rtt=1ms", gain=2.5, **changes):
    """single, sp and astra in turn."""
    return [
        one("single", 0.1, 1.0, network, **changes),
        one("sp", 0.4, 0.25, network, **changes),
        one("astra", 0.1 / gain, gain, network, **changes),
    ]


def written(folder, runs, **more):
    about = {"host": {"machine": "x86_64", "system": "Linux", "cpus": 2}, "versions": {"python": "3.11", "mpi": "M 5"}}
    path = folder / "runs.json"
    path.write_text(json.dumps({"runs": runs, **about, **more}))
    return path


def read(folder, runs, **more):
    return read_runs([written(folder, runs, **more)])


class Page(HTMLParser):
    """Checks nesting, collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_types_of_products_are_told_apart(tmp_path):
    """The same run in another type is under another condition; a GPU's type is its precision."""
    types = {"float32": {}, "bfloat16": {"compute": "bfloat16"}, "tf32": {"precision": "tf32"}}
    measured = read(tmp_path, [one(choices=choices) for choices in types.values()])
    assert [run.at.compute for run in measured.runs] == list(types)
    assert "(vit.h5, bfloat16, virtual clock" in condition(measured.runs[1])
    assert "<td>tf32</td>" in page(measured, [])


def test_read(tmp_path):
    measured = read(tmp_path, trio())
    single, sp, astra = measured.runs
    assert (single.name, sp.name, astra.name) == ("single", "sp", "astra G=1 K=1024")
    assert astra.at == ("vit.h5", 1, 1024, 4, "10Mbps,rtt=1ms", "port", "virtual", "float32")
    assert (astra.mbps, astra.link, astra.speedup, astra.strategy) == (10, "rtt=1ms", 2.5, "astra")
    assert (astra.counted_keys, sp.counted_keys, astra.contributed_bytes, astra.port_bytes) == (False, None, 7, 6)
    assert measured.hosts == ("x86_64, Linux, 2 CPUs; python 3.11, mpi M 5",)
    assert [run.mbps for run in read(tmp_path, [one(network=n) for n in ("real", "trace:f.csv,rtt=1ms")]).runs] == [
        None, None,
    ]  # fmt: skip


def test_speedups_are_over_single_alone(tmp_path):
    runs = read(tmp_path, [one("sp"), one("tp", over=2.0)]).runs
    assert [run.speedup for run in runs] == [None, None]
    assert read(tmp_path, [one("sp", speedup=0.3)]).runs[0].speedup == 0.3  # a sweep's


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100000, "is not valid JSON"),
        ("[]", "no list of runs"),
        ('{"runs": 3}', "no list of runs"),
        ('{"runs": []}', "holds no runs"),
        ('{"runs": [3]}', "is no file of"),
        ('{"runs": [{"strategy": "sp"}]}', "'tokens' is missing"),
        ('{"runs": [], "failures": [{}]}', "'strategy' is missing"),
        ('{"verdict": "x"}', "is no file of"),
        ('{"runs": [], "hosts": 3}', "is no file of"),
    ],
)
def test_foreign_files(tmp_path, text, words):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(InputError, match=r"f\.json") as caught:
        read_runs([tmp_path / "f.json"])
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": []},
        {"tokens": ["x"]},
        {"ranks": -1},
        {"ranks": True},
        {"network": 3},
        {"latency_s": {"total": float("nan"), "exchange_wait": 0, "phases": {}}},
        {"latency_s": {"total": 0, "exchange_wait": 0, "phases": {}}},
        {"latency_s": {"total": 1, "exchange_wait": 0, "phases": {"mlp": None}}},
        {"port_bytes": []},
        {"speedup": -2.0},
        {"codec": {"kind": "grouped"}, "strategy": "astra"},
        {"codec": [1]},
        {"choices": None},
    ],
)
def test_damaged_runs(tmp_path, change):
    with pytest.raises(InputError, match="is no file of"):
        read(tmp_path, [one(**change)])


def test_lines_over_each_axis_and_the_published_ones(tmp_path):
    runs = [run for network in ("10Mbps", "100Mbps") for run in trio(network)]
    runs += trio("10Mbps", 1.5, ranks=2) + trio("10Mbps", 1.25, tokens=[256])
    bandwidth, ranks, tokens = line_charts(read(tmp_path, runs))
    assert [chart.axis for chart in (bandwidth, ranks, tokens)] == ["bandwidth", "ranks", "tokens"]
    lines = {line.name: line for line in bandwidth.lines}
    assert list(lines) == ["sp", "astra G=1 K=1024", "published: SP", "published: ASTRA G=1"]
    assert lines["sp"].points == ((10, 0.25), (100, 0.25))
    curve = PUBLISHED["bandwidth"]
    assert lines["published: ASTRA G=1"].points == tuple(zip(curve["at"], curve["speedup"]["ASTRA G=1"], strict=True))
    assert lines["published: ASTRA G=1"].like == "astra G=1 K=1024"
    assert {line.name: line.points for line in ranks.lines}["astra G=1 K=1024"] == ((2, 1.5), (4, 2.5))
    assert {line.name: line.points for line in tokens.lines}["astra G=1 K=1024"] == ((256, 1.25), (1024, 2.5))
    for chart in (bandwidth, ranks, tokens):
        for word in ("etwork: 10Mbps", "clock: virtual", "accounting: port", "counted keys: off", "approx., read off",
                     "distinct keys: astra G=1 K=1024 321", "x86_64, Linux, 2 CPUs; python 3.11"):  # fmt: skip
            assert word in chart.facts


def test_runs_of_other_conditions_are_not_joined(tmp_path):
    runs = trio("10Mbps") + trio("100Mbps", clock="wall") + trio("100Mbps,rtt=5ms") + trio("50Mbps", model="other.h5")
    assert line_charts(read(tmp_path, runs)) == []


def test_published_schemes():
    assert scheme_of("astra", CODEC) == "ASTRA G=1"
    assert scheme_of("astra", CODEC | {"kind": "residual"}) is None
    assert [scheme_of(name, {}) for name in ("sp", "sp:int8", "tp", "bp", "single")] == [
        "SP", None, "TP", "BP+AG Nb=1", None,
    ]  # fmt: skip


def test_bars_at_both_ends_of_the_bandwidth(tmp_path):
    runs = trio("100Mbps") + trio("10Mbps") + trio("20Mbps") + trio("5Mbps", ranks=2)
    measured = read(tmp_path, runs)
    assert [group[0].at.network for group in shown_conditions(measured.runs)] == ["10Mbps", "100Mbps"]
    bars = phase_bars(measured)[0]
    assert bars.names == ("single", "sp", "astra G=1 K=1024")
    assert bars.phases == ("attention", "mlp", "exchange")  # in the order of a forward pass, waiting last
    assert [sum(row) for row in bars.seconds] == pytest.approx([0.1, 0.4, 0.04])
    assert bars.limit_s == 0.2  # sp is cut


def test_verdict(tmp_path):
    low, high = trio("10Mbps", 0.5), trio("100Mbps", 2.5)
    told = " ".join(verdict(read(tmp_path, low + high)))
    where = "At 10Mbps, 4 ranks, 1 x 1024 tokens (vit.h5, float32, virtual clock, port accounting)"
    assert f"{where}, one machine alone is fastest, 100 ms" in told
    assert "the best of the others, astra G=1 K=1024, takes 200 ms, 0.5 times as fast" in told
    assert "astra G=1 K=1024 is fastest: 40 ms, 2.5 times as fast as one machine (one machine: 100 ms); 25%" in told
    assert "The best rival, sp, takes 400 ms, 0.25 times as fast as one machine" in told
    assert "virtual clock adds" in told
    assert "takes 500 ms." in " ".join(verdict(read(tmp_path, [one("sp", clock="wall")])))


def test_page_is_whole_and_refers_to_nothing_outside(tmp_path):
    failures = [{"strategy": "bp", "network": "10Mbps", "ranks": 3, "tokens": 64, "failure": "no equal parts"}]
    measured = read(tmp_path, trio() + trio("100Mbps"), failures=failures)
    text = page(measured, draw_all(measured) if not missing_matplotlib() else [], "plots need ..")
    found = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(found.tags)
    references = [value for name, value in found.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert all(value.startswith("data:image/svg+xml;base64,") for value in references)
    assert "url(" not in text and "@import" not in text
    words = " ".join(found.words)
    assert words.index("times as fast") < words.index("All runs") < words.index("What failed")
    for word in ("bp, 10Mbps, 3 ranks, 64 tokens", "no equal parts", "x86_64", "2.5x", "1 of 7"):
        assert word in words
    assert found.tags.count("table") == 3


def test_everything_from_files_is_escaped(tmp_path):
    nasty = dict(
        strategy=NASTY, network=NASTY, clock=NASTY, accounting=NASTY, model_name=NASTY, codec_name="\ud800\x00"
    )
    runs = [one(**nasty), one(**nasty | {"ranks": 2, "speedup": 2.0}), one(**nasty | {"ranks": 3, "speedup": 2.0})]
    failures = [{"strategy": NASTY, "network": NASTY, "ranks": 3, "failure": NASTY}]
    measured = read(tmp_path, runs, failures=failures, versions={NASTY: NASTY})
    pictures = draw_all(measured) if not missing_matplotlib() else []
    text = page(measured, pictures, NASTY)
    text.encode("utf-8")
    found = Page(text)
    assert "script" not in found.tags
    assert "<script" not in re.sub(r'alt="[^"]*"', "", text)  # in a quoted attribute it is a name like others
    assert all(name in ("lang", "charset", "name", "content", "class", "src", "alt") for name, _ in found.attributes)
    assert any(NASTY in words for words in found.words)


def test_text_for_matplotlib():
    assert _plain("a$b$") == r"a\$b\$"
    assert _plain("_x") == "\u200b_x"
    assert len(_plain("x" * 99)) == 40


def command(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "astra_mpi", "report", *map(str, arguments)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == code, done.stderr
    return done


def test_command(tmp_path):
    path, out = written(tmp_path, trio()), tmp_path / "r.html"
    done = command(path, path, "-o", out)
    assert Page(out.read_text()).tags.count("table") == 1
    if missing_matplotlib():
        assert "pip install 'astra-mpi[plot]'" in done.stderr and "pip install" in out.read_text()
    for wrong in (tmp_path / "none.json", Path(__file__)):
        err = command(wrong, "-o", tmp_path / "x.html", code=2).stderr
        assert err.startswith("astra-mpi: error: ") and err.count("\n") == 1
    assert not (tmp_path / "x.html").exists()
    assert "cannot be written" in command(path, "-o", tmp_path / "none" / "r.html", code=2).stderr


@drawn
def test_plots(tmp_path):
    runs = [run for network in ("10Mbps", "100Mbps") for run in trio(network)]
    measured = read(tmp_path, runs + trio("10Mbps", 1.5, ranks=2) + trio("10Mbps", 1.25, tokens=[256]))
    pictures = draw_all(measured)
    names = [picture.name for picture in pictures]
    assert names == ["speedup-bandwidth-1", "speedup-ranks-2", "speedup-tokens-3", "phases-1", "phases-2"]
    dashed = [line for line in pictures[0].figure.axes[0].lines if line.get_linestyle() == "--"]
    assert {line.get_label() for line in dashed} == {"published: SP", "published: ASTRA G=1"}
    assert pictures[0].svg() == draw_all(measured)[0].svg()
    command(written(tmp_path, runs), "-o", tmp_path / "r.html", "--figures", tmp_path / "png")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "png").iterdir())
