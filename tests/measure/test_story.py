"""The table and the page of the quickstart, of figures that are known."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import story
import story_page

#: latency in seconds, passages per second, bytes, cosine, agreement at 10 and 100 Mbit/s
FIGURES = {
    "one machine": ((0.08, 12, 0, 1, 1), (0.08, 12, 0, 1, 1)),
    "replicas": ((0.08, 46, 0, 1, 1), (0.08, 47, 0, 1, 1)),
    "exact, shared (sp)": ((1.6, 0.5, 2e6, 1, 1), (0.2, 5, 2e6, 1, 1)),
    "astra": ((0.05, 40, 4100.0, 0.96, 0.8), (0.04, 45, 4100.0, 0.96, 0.8)),
}


def write(folder):
    ways = [
        {"way": way, "mbps": mbps, "longest_tokens": 254.0}
        | dict(zip(("latency_s", "per_s", "bytes", "cosine", "agreement"), figures, strict=True))
        for way, both in FIGURES.items()
        for mbps, figures in zip((10, 100), both, strict=True)
    ]
    told = {"ranks": 4, "sample": 64, "batch": 16, "nearest": 5, "ways": ways}
    (folder / "story.json").write_text(json.dumps(told))
    hit = {"source": "try", "text": "a <finally> clause & more"}
    asked = [{"question": "When?", "exact": hit, "astra": hit}]
    (folder / "answers.json").write_text(json.dumps({"top": 5, "agreement": 0.8, "questions": asked}))


def test_table_and_page(tmp_path, capsys):
    write(tmp_path)
    story_page.tell(tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(tmp_path / "story.html")
    rows = [re.split(r"  +", line) for line in said if line.startswith(tuple(FIGURES))]
    assert rows[3] == ["astra", "50 ms", "40 ms", "40.0", "45.0", "4,100", "0.960", "80%"]
    assert rows[2][1:4] == ["1600 ms", "200 ms", "0.5"] and rows[0][-2:] == ["1", "100%"]
    assert "At 10 Mbit/s one passage is done soonest by astra, 1.60 times as fast as by one machine" in "\n".join(said)
    assert "a job of many by replicas, 3.92 times as fast" in "\n".join(said)
    page = (tmp_path / "story.html").read_text()
    assert "a &lt;finally&gt; clause &amp; more" in page
    assert set(re.findall(r"https?://[^\"<]*", page)) == {"http://www.w3.org/2000/svg"}, "it loads nothing"
    assert not re.search(r"<(script|link|img)", page) and page.count("<svg") == 4


def test_a_bar_that_is_much_longer_is_cut():
    svg = story_page.chart(story_page.Bars("time", {way: both[0][0] for way, both in FIGURES.items()}, "s"))
    widths = [float(rect.get("width")) for rect in svg.iter("rect")]
    words = [text.text for text in svg.iter("text")]
    assert widths[0] == widths[1] and widths[2] == max(widths) and widths[2] < 20 * widths[0]
    assert "→ 1.6 s" in words and "0.05 s" in words
    assert ElementTree.tostring(svg)


def test_likeness_counts_the_same_neighbours():
    exact = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    same = story.likeness(exact * 2, exact)
    assert same["agreement"] == 1 and same["cosine"] > 1 - 1e-6
    other = story.likeness(exact[::-1].copy(), exact)
    assert other["agreement"] < 0.5 and other["cosine"] < 0.5
    assert len(story.drawn(20)) == 20 and len(set(story.drawn(622))) == story.N_SAMPLE
