#!/bin/sh
# The main job from nothing: sets up .venv, makes four toy brains (two with something planted), scores them and shows
# how well that went. usage: scripts/demo.sh [FOLDER]   (default: toy/ in the repository; it must not exist yet)
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
out=${1:-$root/toy}
if [ -e "$out" ]; then
    echo "demo.sh: $out: expected a folder that is not there yet; remove it or name another" >&2
    exit 2
fi
"$root/scripts/setup.sh"
PYTHON=${VENV:-$root/.venv}/bin/python
export PYTHON
"$PYTHON" "$root/scripts/make_toy.py" --region brain --size 100 --volumes 4 --seed 1 -o "$out"
"$root/run_sample_brain.sh" "$out/brain/toy" "$out/predicted/sample"
"$root/run_pixel_brain.sh" "$out/brain/toy" "$out/predicted/pixel" --findings "$out/predicted/findings" --report "$out/predicted/run.json"
for score in "$out"/predicted/sample/*.txt; do
    name=$(basename "$score" .txt)
    echo "$name: score $(cat "$score"), anomalous: $(cat "$out/brain/toy_label/sample/$name.txt")"
done
for task in sample pixel; do
    "$PYTHON" "$root/scripts/evaluate.py" --pred "$out/predicted/$task" --label "$out/brain/toy_label" --task "$task"
done
"$PYTHON" "$root/scripts/show.py" "$out/brain/toy" "$out/predicted/pixel" --label "$out/brain/toy_label" -o "$out/scores.png"
PYTHONPATH=$root "$PYTHON" -m mood_submission report -i "$out/brain/toy" -p "$out/predicted/pixel" --samples "$out/predicted/sample" \
    --findings "$out/predicted/findings" --label "$out/brain/toy_label" --run "$out/predicted/run.json" --region brain -o "$out/report"
echo "Look at $out/report/index.html in a browser: the brains with something planted stand first, each with what was found in it,"
echo "pictures through it, and a viewer that opens where it lies."
