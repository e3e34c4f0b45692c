#!/usr/bin/env bash
# This project beside llama.cpp, PyTorch, ONNX Runtime and distributed-llama with SmolLM2-135M, and with ViT-Base and
# MiniLM, on one core and on an emulated cluster: gets and builds the peers, makes what they load, measures, and prints
# the tables of docs/log/peers.md.
#   sudo env PATH="$PATH" bash jobs/peers/peers.sh                      all cells
#   sudo env PATH="$PATH" bash jobs/peers/peers.sh --places 100 --tokens 1024 --only ours-astra,torch-tp --repeats 1
# Options are those of measure.py; with any, only its cells are measured. It goes on where it was interrupted. WORK
# (work/peers): everything. DLLAMA: distributed-llama's sources, which takes it in. CODEBOOKS: a file for SmolLM2's
# float32 weights, instead of 7 CPU minutes of calibration; those for Q8_0 weights are made. CALIBRATION and TEST: texts
# to calibrate on, and to take the prompt and the perplexity from, instead of Python's documentation. PAGE: a page to
# write the tables into.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich,text,test,plot
export WORK=${WORK:-work/peers} CORES
setup_smollm2
setup_minilm
bash jobs/peers/get.sh
python jobs/peers/prepare.py "$WORK" "$SMOLLM2" ${CODEBOOKS:+--codebooks "$CODEBOOKS"} \
  ${CALIBRATION:+--calibration "$CALIBRATION"} ${TEST:+--test "$TEST"}
python jobs/peers/measure.py "$WORK" "$@"
if [ $# = 0 ]; then
  [ -e "$WORK/cells/texts.json" ] || python jobs/peers/texts.py "$WORK" "$MINILM"
  python jobs/peers/encoders.py "$WORK" "$MINILM"
fi
python jobs/peers/page.py "$WORK" ${PAGE:+--write "$PAGE"}
