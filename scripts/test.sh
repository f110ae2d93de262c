#!/bin/sh
# Sets up .venv and runs the tests in two processes. usage: scripts/test.sh [--quick] [OPTIONS of pytest]
# --quick leaves out what takes long: kills, soaks, training from end to end, the shipped weights.
# --engine onnx or --engine int8 lets ONNX Runtime compute wherever a test does not ask for an engine.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
"$root/scripts/setup.sh"
cd "$root"
if [ "${1:-}" = --quick ]; then
    shift
    set -- -m "not long and not slow" "$@"
fi
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # of each process; more threads than cores wait for each other
export OMP_NUM_THREADS
exec "${VENV:-$root/.venv}/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
