#!/usr/bin/env bash
# Gets and builds the peers that measure.py measures beside this project: from package registries, one from a folder.
#   bash jobs/peers/get.sh                        into WORK (work/peers); what is there already is kept
# llama.cpp: the sources in llama-cpp-python's source distribution, by CMake for this machine's processor, with RPC.
# ONNX Runtime: wheels. PyTorch and transformers: the extra `test`. JOBS: compilers at a time (default: cores).
# distributed-llama: DLLAMA=FOLDER of its sources; without them it is left out.
# Needs cmake, a C++ compiler and make. A first run takes 8 minutes of CPU time, most of it llama.cpp's.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich,text,test,plot
work=${WORK:-work/peers}
mkdir -p "$work"
work=$(realpath "$work")
jobs=${JOBS:-$CORES}
LLAMA=0.3.36

# other packages, in a folder that workers append to their path: NumPy stays this project's
if [ ! -e "$work/python/.done" ]; then
  python -m pip install --quiet --disable-pip-version-check --upgrade --target "$work/python" \
    onnxruntime==1.32.0 onnx==1.23.2 onnxscript==0.7.2
  touch "$work/python/.done"
fi

llama=$work/llama_cpp_python-$LLAMA
if [ ! -d "$llama" ]; then
  python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
    --dest "$work" "llama-cpp-python==$LLAMA"
  tar -xzf "$work/llama_cpp_python-$LLAMA.tar.gz" -C "$work"
  rm "$work/llama_cpp_python-$LLAMA.tar.gz"
fi
if [ ! -e "$work/llama/done" ]; then
  if [ "$(c++ -dumpversion | cut -d. -f1)" -lt 13 ] && grep -qw amx_tile /proc/cpuinfo; then
    # GCC 12 drops the stores that fill the description of the tiles, and the program dies by SIGILL at `tilezero`
    sed -i 's/^\( *\)_tile_loadconfig(&tc);/\1__asm__ volatile("" ::: "memory");\n&/' \
      "$llama/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
  fi
  cmake -S "$llama/vendor/llama.cpp" -B "$work/llama" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DGGML_NATIVE=ON -DGGML_RPC=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_OPENSSL=OFF >"$work/llama-cmake.log"
  cmake --build "$work/llama" --parallel "$jobs" --target llama llama-bench llama-quantize ggml-rpc-server \
    >"$work/llama-build.log"
  touch "$work/llama/done"
fi

if [ ! -e "$work/dllama/version" ]; then
  if [ -z "${DLLAMA:-}" ]; then
    echo "distributed-llama is left out; DLLAMA=FOLDER of its sources takes it in"
  else
    [ -e "$DLLAMA/src/app.hpp" ] || { echo "get: $DLLAMA has no src/app.hpp: set DLLAMA to distributed-llama's sources" >&2; exit 2; }
    rm -rf "$work/dllama"
    cp -rL "$DLLAMA" "$work/dllama"
    make -C "$work/dllama" --jobs "$jobs" CXX="c++ -fPIC" dllama >"$work/dllama-build.log"
    # the objects of its Makefile, without the one that has `main`, under our loop of prompts
    c++ -shared -fPIC -std=c++11 -O3 -I "$work/dllama/src" -o "$work/dllama/dllama_steps.so" jobs/peers/dllama_steps.cpp \
      "$work"/dllama/*.o -lpthread
    git -C "$DLLAMA" describe --tags --always >"$work/version" 2>/dev/null || echo "?" >"$work/version"
    mv "$work/version" "$work/dllama/version"
  fi
fi

ls "$work"/llama/bin/{llama-bench,llama-quantize,ggml-rpc-server,libllama.so} >/dev/null
echo "peers are in $work"
