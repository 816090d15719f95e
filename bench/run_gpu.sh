#!/usr/bin/env bash
# On a machine with a GPU, torch and nvcc, without network: builds the extension for that GPU in place, runs the tests
# marked gpu, the memory checker on the smallest of them where there is one, and the GPU benches. In under 9 minutes.
#
#   PYTHON=python bash bench/run_gpu.sh OUTDIR
#
# Leaves OUTDIR/figures.jsonl (environment with commit, then a figure with its spread per line) and the logs of every
# stage. Building needs setuptools, pybind11 and ninja; where it cannot be done, an extension that is there already is
# used if it runs on this GPU, and the figures say so. Exit status 1 if any stage failed.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: $0 OUTDIR"; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
started=$SECONDS
status=()
failed=0

# stage NAME LIMIT COMMAND...: runs it, keeps its output in OUTDIR/NAME.log and how it ended in `status`
stage() {
  local name=$1 limit=$2 rc=0
  shift 2
  printf '== %s (%d s so far)\n' "$name" "$((SECONDS - started))"
  timeout "$limit" "$@" > "$out/$name.log" 2>&1 || rc=$?
  tail -n 4 "$out/$name.log"
  if [ "$rc" -eq 0 ]; then status+=(--status "$name=ok"); else status+=(--status "$name=failed with $rc"); fi
  return "$rc"
}

capability=$("$python" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())") || {
  echo "run_gpu: torch finds no CUDA device here"
  exit 1
}

if ! FASTPURE_EXT=1 FASTPURE_CUDA=1 FASTPURE_CUDA_ARCHS=$capability \
  stage build 120 "$python" setup.py build_ext --inplace; then
  failed=1
  "$python" -c "from fastpure.kernels import extension; import sys; sys.exit(extension.reason_against_cuda())" || {
    echo "run_gpu: the extension could not be built, and none that runs here is there; see $out/build.log"
    exit 1
  }
  echo "run_gpu: NOT built here, using the extension that is there"
fi

# Only the folders that hold such tests: others import packages that a GPU machine need not have.
stage tests 200 "$python" -m pytest -q -p no:cacheprovider -m gpu --junitxml="$out/tests.xml" tests/kernels tests/reverse || failed=1

sanitizer=$(command -v compute-sanitizer || command -v /usr/local/cuda/bin/compute-sanitizer || true)
if [ -n "$sanitizer" ]; then
  stage sanitizer 75 "$sanitizer" --tool memcheck --error-exitcode 9 --target-processes all \
    "$python" -m pytest -q -p no:cacheprovider -m gpu tests/kernels/test_cuda.py -k test_smallest || failed=1
else
  echo "== sanitizer: compute-sanitizer was not found, not run"
  status+=(--status "sanitizer=not found")
fi

printf '== figures (%d s so far)\n' "$((SECONDS - started))"
timeout 175 "$python" -m bench.gpu_figures "$out/figures.jsonl" --seconds 140 --tests "$out/tests.xml" "${status[@]}" \
  2> "$out/figures.log" || failed=1
[ "$failed" -eq 0 ] || tail -n 5 "$out/figures.log"
printf 'run_gpu: %s in %d s, see %s\n' "$([ "$failed" -eq 0 ] && echo passed || echo FAILED)" "$((SECONDS - started))" "$out"
exit "$failed"
