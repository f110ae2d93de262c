#!/bin/sh
# Builds the submission's image with a model of your own in place of the shipped weights of its region. MODEL.graphs beside it, of
# `mood-submission quantise`, is taken along: with it ONNX Runtime computes in int8 where the processor has VNNI.
# usage: scripts/make_image.sh MODEL.safetensors [TAG [OPTIONS of docker build]]   (default tag: mood-submission)
# Set VENV or PYTHON where the package's Python is elsewhere than in .venv.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ "$#" -lt 1 ]; then
    echo "usage: $0 MODEL.safetensors [TAG [OPTIONS of docker build]]" >&2
    exit 2
fi
model=$1 tag=${2:-mood-submission}
[ "$#" -lt 2 ] || shift
shift
python=${VENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=python3
region=$(PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-$python}" "$root/docker/take_weights.py" "$model")
if ! command -v docker >/dev/null; then
    echo "make_image.sh: expected docker, found no such program" >&2
    exit 1
fi
# docker build sees nothing but the checkout.
own=.own-$$
trap 'rm -f "$root/$own.safetensors" "$root/$own.graphs"' EXIT
trap 'exit 130' INT TERM
cp -- "$model" "$root/$own.safetensors"
graphs=${model%.safetensors}.graphs
if [ -f "$graphs" ]; then
    cp -- "$graphs" "$root/$own.graphs"
    set -- "$@" --build-arg "GRAPHS=$own.graphs"
    engine="with its graphs for ONNX Runtime"
else
    engine="computed by torch (mood-submission quantise writes $graphs for ONNX Runtime)"
fi
docker build "$@" --build-arg "WEIGHTS=$own.safetensors" -t "$tag" "$root"
echo "$tag: an image with $model as the weights of region $region, $engine; docker/smoke_test.sh $tag tries it"
