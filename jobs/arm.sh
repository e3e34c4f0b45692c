#!/usr/bin/env bash
# The package on 64-bit Arm, where there is none: a Debian root file system for arm64 is made, the package is installed in
# it from wheels, and its tests run there under user-mode emulation (QEMU). As root, on Debian or Ubuntu:
#   apt-get install mmdebstrap qemu-user-static && bash jobs/arm.sh
# ROOT (work/arm) is where the system goes (1.5 GB), SUITE (bookworm) its release, MIRROR (http://deb.debian.org/debian)
# where its packages come from, TESTS files to run instead. What is there is used again. Takes long: see jobs/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(realpath -m "${ROOT:-work/arm}") suite=${SUITE:-bookworm} mirror=${MIRROR:-http://deb.debian.org/debian}
tests=${TESTS:-tests/codec/test_packing.py tests/codec/test_tables.py tests/codec/test_scalar.py tests/files/test_modelfile.py \
tests/kernels/test_block_products.py tests/kernels/test_kernels.py}
die() { echo "arm.sh: error: $*" >&2; exit 2; }
[ "$(id -u)" = 0 ] || die "needs root, for a root file system and its mounts"
for tool in mmdebstrap qemu-aarch64-static unshare; do
  command -v "$tool" >/dev/null || die "no $tool here; apt-get install mmdebstrap qemu-user-static util-linux"
done

# programs for arm64 are started with QEMU; F: it is opened now, so that a chroot need not have it
binfmt=/proc/sys/fs/binfmt_misc
[ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
if [ ! -e $binfmt/qemu-aarch64 ]; then
  magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  printf '%s' ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >$binfmt/register
fi
if [ ! -x "$root/usr/bin/python3" ]; then
  mmdebstrap --architectures=arm64 --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
    "$suite" "$root" "$mirror"
fi
# QEMU has no process_vm_readv, by which MPICH copies large messages (CMA)
# mounts of a namespace of their own: nothing of them is left, whatever happens
inside() { # COMMAND
  unshare -m bash -c 'mount -t proc proc "$1/proc" && mount --rbind /sys "$1/sys" && mount --rbind /dev "$1/dev" &&
    exec chroot "$1" /usr/bin/env -i HOME=/root PATH=/env/bin:/usr/bin:/bin LANG=C.UTF-8 OMP_NUM_THREADS=1 \
    NUMBA_NUM_THREADS=1 NUMBA_CACHE_DIR=/kernels MPIR_CVAR_CH4_CMA_ENABLE=0 bash -c "cd /work && $2"' bash "$root" "$1"
}

# wheels are chosen for arm64 here, where that is quick. PyTorch is what tests compare with: its later wheels need CUDA
python=$(chroot "$root" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
platforms=(--platform manylinux2014_aarch64)
for glibc in 17 24 26 27 28 31 34; do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
mkdir -p "$root/wheels" "$root/work"
rm -f "$root"/wheels/astra_mpi-*
git archive HEAD | tar x -C "$root/work"
pip() { python3 -m pip "$@" --disable-pip-version-check; }
pip wheel -q --no-deps -w "$root/wheels" "$root/work"
pip download -q -d "$root/wheels" --only-binary=:all: --python-version "$python" --implementation cp "${platforms[@]}" \
  --find-links "$root/wheels" 'astra-mpi[mpich,text]' 'pytest>=9' 'pytest-mpi>=0.6' 'hypothesis>=6.100' 'faiss-cpu>=1.9'
pip download -q -d "$root/wheels" --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
  "${platforms[@]}" torch==2.8.0 sympy mpmath networkx
(cd "$root/wheels" && ls -- *aarch64*.whl)
inside '[ -x /env/bin/python ] || /usr/bin/python3 -m venv --without-pip /env
  install() { /usr/bin/python3 -m pip --python /env/bin/python install -q --no-compile --no-index --no-deps "$@"; }
  install /wheels/*.whl && install --force-reinstall /wheels/astra_mpi-*.whl'
echo "== installed on $(inside 'uname -m'): $(inside 'cd / && astra-mpi --version')"
inside 'cd / && astra-mpi compile --compute float32'
echo "== verify on two ranks"
# small codebooks: k-means is slow here
for shape in bert llama; do
  inside "cd / && astra-mpi init $shape-tiny $shape.h5 --codebook-size 16 --stages 2 &&
    mpirun -n 2 astra-mpi verify $shape.h5 --strategies single,sp,astra --tokens 12 --batch 2"
done
echo "== serial tests"
# QEMU sets flags of float errors that Arm's processors do not, and NumPy warns of them
inside "python -m pytest -q -W ignore::RuntimeWarning --durations=10 $tests"
