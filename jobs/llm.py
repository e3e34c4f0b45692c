"""The steps of llm.sh that are its own: the document and the question, the first token's time, and the comparison.

python jobs/llm.py write WORK [QUESTION] [--file FILE]   document.txt, ask.jsonl and texts to calibrate on
mpirun -n 4 python jobs/llm.py first WORK                first.json: time to the first token over emulated links
python jobs/llm.py compare WORK NAME..                   answers side by side and figures; the first NAME is compared to
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np

from astra_mpi.errors import AstraError, collective
from astra_mpi.files.modelfile import read_model
from astra_mpi.files.utf8 import read_text
from astra_mpi.inputs.chat import MESSAGES, ChatTemplate
from astra_mpi.inputs.passages import passages
from astra_mpi.inputs.text import tokenizer_of

#: of Python's documentation; what is asked of it, and about how many tokens of a document are kept
TOPIC, QUESTION, N_TOKENS = "try", "When is the finally clause of a try statement executed?", 2000
PASSAGE_TOKENS = 512
LINKS = ("10Mbps,rtt=2ms", "100Mbps,rtt=2ms", "1Gbps,rtt=2ms")
STRATEGIES = ("single", "sp", "astra")
COLUMN = 56


def write(work: Path, question: str, file: Path | None) -> None:
    """The document is the user's file, or a topic of the running Python's documentation; codebooks are made for other
    texts, which are the documentation's other topics."""
    from pydoc_data.topics import topics

    model = read_model(work / "model.h5")
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size)
    document = topics[TOPIC] if file is None else read_text(str(file))
    ids = tokenizer.encode_plain(document, str(file or TOPIC))
    if len(ids) > N_TOKENS:
        print(f"the document has {len(ids)} tokens; its first {N_TOKENS} are taken")
        document = tokenizer.decode(ids[:N_TOKENS])
    (work / "document.txt").write_text(document, encoding="utf-8")
    messages = [{"role": "user", "content": f"{document.strip()}\n\nAnswer from the text above. {question}"}]
    n_prompt = len(tokenizer.encode_plain(ChatTemplate(model.preprocess).render(messages), "the question"))
    (work / "ask.jsonl").write_text(json.dumps({MESSAGES: messages}) + "\n", encoding="utf-8")
    others = [text for name, text in sorted(topics.items()) if name != TOPIC]
    cut = [part for text in others for part in passages(text, tokenizer, PASSAGE_TOKENS)]
    lines = "".join(json.dumps({"text": part}) + "\n" for part in cut)
    (work / "calibration.jsonl").write_text(lines, encoding="utf-8")
    print(f"{question} asked of {file or 'Python: ' + TOPIC}: {n_prompt} tokens")


def first(work: Path) -> None:
    """Under mpirun: the virtual clock counts the CPU seconds of each rank, and what the link would add."""
    from mpi4py import MPI

    import astra_mpi
    from astra_mpi.inputs.opening import open_input
    from astra_mpi.network.spec import parse_network
    from astra_mpi.ranks.broadcast import broadcast_ids

    comm, found = MPI.COMM_WORLD, []
    model = astra_mpi.load(str(work / "astra.h5"), comm=comm, strategy=None, network=LINKS[0], clock="virtual")
    ids = None
    with collective(comm):
        if comm.Get_rank() == 0:
            from astra_mpi.decks.deck import load_deck

            section = load_deck(Path(__file__).with_name("llm.toml"), [f"input.path={work / 'ask.jsonl'}"]).input
            source = open_input(section, model.tokenizer, model.preprocess, model.config, prompts=True)
            ids = source.batch(0, 1)[0][0].astype(np.int64)
    ids = broadcast_ids(comm, ids)
    for strategy in STRATEGIES:
        model.use(strategy)
        for link in LINKS:
            if strategy == "single" and link != LINKS[0]:  # which sends nothing
                found.append(found[-1] | {"link": link})
                continue
            model.exchange.connect(parse_network(link))
            model.generate(ids[None], max_new_tokens=1)
            report = model.report
            figures = {"strategy": strategy, "link": link, "ranks": comm.Get_size()}
            figures["first_token_s"] = report["generation"]["first_token_s"]
            figures["contributed_bytes"] = sum(report["contributed_bytes"])
            found.append(figures)
    if comm.Get_rank() == 0:
        (work / "first.json").write_text(json.dumps(found, indent=2) + "\n")


def compare(work: Path, names: list[str]) -> None:
    texts, tokens, summaries, perplexities = {}, {}, {}, {}
    for name in names:
        with h5py.File(work / f"{name}.out.h5") as file:
            tokens[name], texts[name] = file["outputs/tokens"][0], file["outputs/text"].asstr()[0]
        summaries[name] = json.loads((work / f"{name}.out.json").read_text())
        perplexities[name] = json.loads((work / f"{name}.perplexity.json").read_text())["metrics"]["perplexity"]
    show(texts)
    print(f"\n{'':<8}{'ranks':>6}{'prefill bytes':>15}{'decode bytes':>14}{'cache of a rank':>17}"
          f"{'of the full one':>17}{'same tokens':>13}{'perplexity':>12}")  # fmt: skip
    for name in names:
        metrics = summaries[name]["metrics"]
        n = int((tokens[names[0]] >= 0).sum())
        other = np.flatnonzero(tokens[name][:n] != tokens[names[0]][:n])
        cache, full = max(metrics["cache_bytes"]), metrics["full_cache_bytes"]
        print(f"{name:<8}{summaries[name]['ranks']:>6}{sum(summaries[name]['contributed_bytes']):>15,}"
              f"{sum(metrics['decode_bytes']):>14,}{cache:>17,}{cache / full:>17.1%}"
              f"{f'{other[0] if len(other) else n} of {n}':>13}{perplexities[name]:>12.3f}")  # fmt: skip
    print("\nbytes of all ranks; cache of the rank that keeps most; same tokens: as the first row's, before the first"
          "\nother one; perplexity of the document\n")  # fmt: skip
    show_first(json.loads((work / "first.json").read_text()))


def show_first(found: list[dict]) -> None:
    links = list(dict.fromkeys(row["link"] for row in found))
    title = f"first token on {found[0]['ranks']} machines, s"
    print(f"{title:<32}" + "".join(f"{link.split(',')[0]:>10}" for link in links) + f"{'bytes':>15}")
    for strategy in dict.fromkeys(row["strategy"] for row in found):
        rows = [row for row in found if row["strategy"] == strategy]
        seconds = "".join(f"{row['first_token_s']:>10.2f}" for row in rows)
        print(f"  {strategy:<30}{seconds}{rows[0]['contributed_bytes']:>15,}")
    print("by the virtual clock: CPU seconds of these ranks, and what links of this rate would add")


def show(texts: dict[str, str]) -> None:
    """Equal answers once, two side by side."""
    together: dict[str, list[str]] = {}
    for name, text in texts.items():
        together.setdefault(text, []).append(name)
    blocks = [[", ".join(names) + ":", *wrapped(text)] for text, names in together.items()]
    for pair in (blocks[i : i + 2] for i in range(0, len(blocks), 2)):
        print()
        for line in range(max(map(len, pair))):
            cells = [block[line] if line < len(block) else "" for block in pair]
            print("    ".join(cell.ljust(COLUMN) for cell in cells).rstrip())


def wrapped(text: str) -> list[str]:
    return [line for part in text.strip().split("\n") for line in textwrap.wrap(part, COLUMN) or [""]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("write", "first", "compare"))
    parser.add_argument("work", type=Path)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--file", type=Path)
    args = parser.parse_args()
    if args.step == "write":
        write(args.work, args.words[0] if args.words else QUESTION, args.file)
    elif args.step == "first":
        first(args.work)
    else:
        compare(args.work, args.words)


if __name__ == "__main__":
    try:
        main()
    except AstraError as error:
        sys.exit(f"llm: error: {error}")
