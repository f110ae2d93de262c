#!/bin/sh
# Makes .venv in the repository and installs everything that the demo and the tests need. Does nothing when it is there.
# Set VENV to put it elsewhere, PYTHON to choose the interpreter.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=${VENV:-$root/.venv}
wanted=$(cat "$root/requirements.txt" "$root/requirements-dev.txt")
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/installed.txt" 2>/dev/null || true)" != "$wanted" ]; then
    echo "setting up $venv (once; torch is a large download)" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    # torch first and alone: what is installed then satisfies every other package's wish for it
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' "$root/requirements.txt")"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements-dev.txt"
    printf '%s\n' "$wanted" >"$venv/installed.txt"
fi
