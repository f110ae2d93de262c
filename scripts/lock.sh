#!/bin/sh
# Writes requirements.lock anew: every package of the image with the hashes of its files, for `pip install
# --require-hashes`. To be run after a change of a pin. Needs uv (`pip install uv`).
#
# Left out is torch with its CUDA libraries, whose versions torch itself pins: which build of torch is right depends on
# the machine, and each has other hashes. Left out too is deepbet's graphical toolkit, which is not in the image.
set -eu
cd "$(dirname "$0")/.."
if ! command -v uv >/dev/null; then
    echo "$0: expected the program uv (pip install uv), found none" >&2
    exit 1
fi
made=$(mktemp)
trap 'rm -f "$made"' EXIT
cat requirements.txt requirements-skullstrip.txt requirements-onnx.txt |
    uv pip compile - --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet >"$made"
{
    echo "# made by scripts/lock.sh; the image's packages but for torch, with the hashes of their files"
    # an entry is a line that begins with a name, and the lines of hashes after it
    awk '/^[a-z]/ { left_out = /^(torch|triton|nvidia-.*|cuda-.*|customtkinter|darkdetect|colorama)==/ } !left_out' "$made"
} >requirements.lock
