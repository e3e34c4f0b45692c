"""What a CUDA kernel became: registers, spills, and the instructions of each stretch of its code, without a GPU.

python jobs/bench/cuda_code.py encode nearest -D VECTOR=1 -D "CODE=unsigned char" [--arch sm_90] [--least 40]
Parameters are those of the source (kernels/cuda/NAME.cu); HALF and VECTOR are 0 if not given. A line per stretch
without a label in between: how many instructions, then how many of the most frequent kinds. Needs the extra
`cuda-check`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from astra_mpi.kernels.cuda_source import FOLDER, options, source


def compiled(name: str, defines: dict[str, str], arch: str) -> tuple[bytes, str]:
    """-> (the code for this GPU, what ptxas says of it)."""
    try:
        import nvidia
        from cupy_backends.cuda.libs import nvrtc
    except ImportError as exc:
        sys.exit(f"NVRTC is not installed ({exc}); pip install 'astra-mpi[cuda-check]'")

    headers = [f"-I{path}" for root in nvidia.__path__ for path in Path(root).glob("*/include")]
    given = {"HALF": "0", "VECTOR": "0"} | defines
    how = options(int(given.pop("HALF")), int(given.pop("VECTOR")), **given)
    program = nvrtc.createProgram(source(name), f"{name}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*how, f"--gpu-architecture={arch}", "--ptxas-options=-v", *headers))
    except nvrtc.NVRTCError:
        sys.exit(nvrtc.getProgramLog(program))
    return nvrtc.getCUBIN(program) + b"\0", nvrtc.getProgramLog(program)  # CuPy takes its last byte for a terminator


def disassembled(code: bytes) -> str:
    import nvidia

    tools = [tool for root in nvidia.__path__ for tool in Path(root).glob("*/bin/nvdisasm")]
    if not tools:
        sys.exit("nvdisasm is not installed; pip install 'astra-mpi[cuda-check]'")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        return subprocess.run([tools[0], "-c", file.name], capture_output=True, text=True, check=True).stdout


def stretches(listing: str, kernel: str) -> list[tuple[str, Counter[str]]]:
    """Of a listing of nvdisasm: the kernel's labels and what follows each up to the next."""
    found: list[tuple[str, Counter[str]]] = []
    inside = False
    for line in listing.splitlines():
        section = re.match(r"\s*\.text\.(\w+):", line)
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if section:
            inside = section[1] == kernel
        if inside and (section or label):
            found.append((label[1] if label else "start", Counter()))
        instruction = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9]*)", line)
        if inside and instruction and found:
            found[-1][1][instruction[1]] += 1
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the source, such as encode")
    parser.add_argument("kernel", help="its kernel, such as nearest")
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--arch", default="sm_90", help="default %(default)s")
    parser.add_argument("--least", type=int, default=40, help="leave out shorter stretches, default %(default)s")
    args = parser.parse_args(argv)
    known = sorted(path.stem for path in FOLDER.glob("*.cu"))
    if args.name not in known:
        sys.exit(f"there is no kernels/cuda/{args.name}.cu; give one of {', '.join(known)}")
    code, log = compiled(args.name, dict(define.split("=", 1) for define in args.defines), args.arch)
    told = re.search(rf"Function properties for {args.kernel}\b.*?Used \d+ registers", log, re.DOTALL)
    if told is None:
        sys.exit(f"{args.name}.cu has no kernel {args.kernel}")
    print(", ".join(re.findall(r"\d+ bytes spill stores|\d+ registers", told[0])))
    for label, kinds in stretches(disassembled(code), args.kernel):
        if kinds.total() >= args.least:
            print(f"{label:>10} {kinds.total():>6}  " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(8)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
