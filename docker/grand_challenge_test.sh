#!/bin/sh
# Runs an image of the target grand-challenge as grand-challenge.org does: no network, no capabilities, no new privileges, read-only
# input, an empty /tmp. usage: docker/grand_challenge_test.sh IMAGE PLAIN_IMAGE [OPTIONS of docker run]
set -eu
if [ "$#" -lt 2 ]; then
    echo "usage: $0 IMAGE PLAIN_IMAGE [OPTIONS of docker run]" >&2
    exit 2
fi
image=$1 plain=$2
shift 2
options=$*
work=$(mktemp -d)

cleanup() { # what another user has written, root of the plain image removes
    docker run --rm --network none -v "$work:/mnt/pred" "$plain" find /mnt/pred -mindepth 1 -delete || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
    echo "grand-challenge test: $*" >&2
    exit 1
}

# case_of SLUG OUT: run the case in $work/SLUG; what is printed is in $work/OUT.log. Returns the container's exit status.
case_of() {
    [ -d "$work/$2" ] || mkdir -m 777 "$work/$2"
    chmod 777 "$work/$2"
    status=0
    # shellcheck disable=SC2086  # several words
    docker run --rm --network none --cap-drop ALL --security-opt no-new-privileges --pids-limit 512 --read-only \
        --tmpfs /tmp --shm-size 128m --memory 4g $options -v "$work/$1:/input:ro" -v "$work/$2:/output" "$image" \
        >"$work/$2.log" 2>&1 || status=$?
    return "$status"
}

user=$(docker inspect --format '{{.Config.User}}' "$image")
case $user in '' | 0 | 0:* | root*) fail "expected an image that does not run as root, found user '$user'" ;; esac

docker run --rm --network none -i -v "$work:/mnt/pred" "$plain" python3 - <<'PYTHON'
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

rng, root = np.random.default_rng(0), Path("/mnt/pred")
z, y, x = np.mgrid[-1:1:24j, -1:1:28j, -1:1:26j]
body = x**2 + y**2 + z**2 < 0.8
for slug, inside, air in (("brain-mri", 200, 0), ("abdominal-ct", 40, -1000)):
    image = sitk.GetImageFromArray(np.where(body, inside + 20 * rng.standard_normal(x.shape), air).astype(np.int16))
    image.SetSpacing((7.0, 7.0, 7.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    folder = root / slug / "images" / slug
    folder.mkdir(parents=True)
    sitk.WriteImage(image, str(folder / "case.mha"))
    socket = {"slug": slug, "super_kind": "Image", "relative_path": f"images/{slug}"}
    (root / slug / "inputs.json").write_text(json.dumps([{"socket": socket}]))
broken = root / "broken" / "images" / "brain-mri"
broken.mkdir(parents=True)
(broken / "case.mha").write_bytes((root / "brain-mri/images/brain-mri/case.mha").read_bytes()[:300])
PYTHON

for slug in brain-mri abdominal-ct; do
    case_of "$slug" "out-$slug" || {
        cat "$work/out-$slug.log" >&2
        fail "$slug: expected exit status 0"
    }
    cat "$work/out-$slug.log"
    docker run --rm --network none -i -v "$work:/mnt/pred:ro" "$plain" python3 - "$slug" <<'PYTHON' || fail "$slug: see above"
import json
import sys

import SimpleITK as sitk

slug = sys.argv[1]
given = sitk.ReadImage(f"/mnt/pred/{slug}/images/{slug}/case.mha")
scores = sitk.ReadImage(f"/mnt/pred/out-{slug}/images/anomaly-map/case.mha")
score = json.load(open(f"/mnt/pred/out-{slug}/anomaly-score.json"))
values = sitk.GetArrayFromImage(scores)
assert isinstance(score, float) and 0 <= score <= 1, score
assert scores.GetSize() == given.GetSize() and scores.GetOrigin() == given.GetOrigin(), scores
assert values.dtype == "float32" and 0 <= values.min() <= values.max() <= 1, (values.min(), values.max())
PYTHON
done

if case_of broken out-broken; then fail "a broken case: expected an exit status that is not 0"; fi
tail -n 1 "$work/out-broken.log" | grep -q '^mood-submission grand-challenge: /input/.*: expected a readable' ||
    fail "a broken case: expected a line that says so, found $(cat "$work/out-broken.log")"
echo "grand-challenge test: passed"
