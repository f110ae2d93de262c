#!/bin/sh
# Sets up .venv and runs the tests. usage: scripts/test.sh [OPTIONS of pytest]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
"$root/scripts/setup.sh"
cd "$root"
exec "${VENV:-$root/.venv}/bin/python" -m pytest "$@"
