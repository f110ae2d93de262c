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
PYTHONPATH=$root "$PYTHON" -m mood_submission predict --region brain --task both -i "$out/brain/toy" -o "$out/predicted" \
    --findings "$out/findings" --report "$out/run.json"
for score in "$out"/predicted/*.txt; do
    name=$(basename "$score" .txt)
    echo "$name: score $(cat "$score"), anomalous: $(cat "$out/brain/toy_label/sample/$name.txt")"
done
for task in sample pixel; do
    "$PYTHON" "$root/scripts/evaluate.py" --pred "$out/predicted" --label "$out/brain/toy_label" --task "$task"
done
"$PYTHON" "$root/scripts/show.py" "$out/brain/toy" "$out/predicted" --label "$out/brain/toy_label" -o "$out/scores.png"
PYTHONPATH=$root "$PYTHON" -m mood_submission report -i "$out/brain/toy" -p "$out/predicted" --findings "$out/findings" \
    --label "$out/brain/toy_label" --run "$out/run.json" --region brain -o "$out/report"
echo "The brains with something planted stand first, each with what was found in it, pictures through it, and a viewer."
exec "$root/scripts/open_page.sh" "$out/report/index.html"
