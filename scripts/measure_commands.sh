#!/bin/sh
# Measures how long every command that takes volumes needs, and how much memory at most, for a brain of 1 mm and a CT of 512 voxels
# a side, which it makes. Prints a table in Markdown for each. usage: scripts/measure_commands.sh [--dry-run] FOLDER [BRAIN [CT]]
#
# FOLDER is for all that is made; what is there of an earlier run is removed. BRAIN and CT are voxels a side, 200 and 512 by default.
# --dry-run prints the command lines alone. The seconds include the start of Python. The memory is that of the process, without what
# the system keeps of files. Run it on a machine that does nothing else; OMP_NUM_THREADS says with how many threads.
# The exit status is 1 where a command failed: what all have told is in FOLDER/REGION/logs.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
dry=
if [ "${1:-}" = --dry-run ]; then
    dry=yes
    shift
fi
if [ "$#" -lt 1 ] || [ "$#" -gt 3 ]; then
    echo "usage: $0 [--dry-run] FOLDER [BRAIN [CT]]" >&2
    exit 2
fi
folder=$1 brain=${2:-200} ct=${3:-512}
python=${PYTHON:-${VENV:-$root/.venv}/bin/python}
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
failed=0

# Runs the command line after LOG, and prints its seconds and the most memory that it, or a process that it started, had.
child='
import resource, subprocess, sys, time
with open(sys.argv[1], "wb") as log:
    began = time.monotonic()
    status = subprocess.call(sys.argv[2:], stdout=log, stderr=log)
    seconds = time.monotonic() - began
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
print(f"{seconds:.1f} | {peak:.0f}")
sys.exit(status)
'

# measure NAME WORDS...: a row of the table, for `mood-submission WORDS`.
measure() {
    name=$1
    shift
    if [ -n "$dry" ]; then
        echo "mood-submission $*"
        return
    fi
    log="$here/logs/$(printf %s "$name" | tr -c 'a-z0-9\n' _).log"
    if row=$("$python" -c "$child" "$log" "$python" -m mood_submission "$@"); then
        echo "| $name | $row |"
    else
        failed=1
        echo "| $name | failed | see $log |"
    fi
}

# predict NAME WORDS...: the same, for `mood-submission predict` of the region's volume.
predict() {
    name=$1
    shift
    measure "$name" predict --region "$region" -i "$one/toy" "$@"
}

# all REGION SIZE SLUG: the table of a region.
all() {
    region=$1 size=$2 slug=$3 here=$folder/$1
    one=$here/one/$region healthy=$here/healthy/$region/toy
    if [ -z "$dry" ]; then
        rm -rf "$here"
        mkdir -p "$here/logs" "$here/case/images/$slug"
        printf 'toy_0\ntoy_1\n' >"$here/names.txt"
        cp "$root/weights/$region.safetensors" "$here/model.safetensors"
        printf '\n%s, %s voxels a side:\n\n| command | seconds | peak memory, MiB |\n|---|---|---|\n' "$region" "$size"
    fi
    measure "make-toy, 1 volume" make-toy --region "$region" --size "$size" --volumes 1 --healthy-fraction 0 -o "$here/one"
    measure "make-toy, 4 healthy volumes" \
        make-toy --region "$region" --size "$size" --volumes 4 --healthy-fraction 1 -o "$here/healthy"
    measure "make-toy --from, 1 volume" make-toy --region "$region" --from "$healthy" --names toy_0 -o "$here/from"
    if [ -z "$dry" ]; then
        cp "$one/toy/toy_0.nii.gz" "$here/case/images/$slug"
    fi
    measure "info" info "$one/toy/toy_0.nii.gz"
    predict "predict, sample" --task sample -o "$here/sample"
    predict "predict, pixel" --task pixel -o "$here/pixel"
    predict "predict, both" --task both -o "$here/both"
    measure "predict, sample, no region" predict -i "$one/toy" --task sample -o "$here/auto"
    predict "predict, both, --findings" --task both --findings "$here/findings" -o "$here/found"
    predict "predict, both, --html" --task both --html "$here/page" -o "$here/shown"
    predict "predict, pixel, 15 restorations" --task pixel --restorations 15 -o "$here/restored"
    measure "grand-challenge" \
        grand-challenge --input "$here/case" --output "$here/case_out" --model "$here/none" --region "$region"
    measure "report" report -i "$one/toy" -p "$here/both" --findings "$here/findings" --label "$one/toy_label" \
        --region "$region" -o "$here/report"
    measure "show" show "$one/toy" "$here/pixel" --label "$one/toy_label" -o "$here/shown.png"
    measure "evaluate, pixel" evaluate --pred "$here/pixel" --label "$one/toy_label" --task pixel
    measure "calibrate, 2 volumes" \
        calibrate "$here/model.safetensors" --data "$healthy" --names-file "$here/names.txt" --restorations 4 \
        -o "$here/calibrated.safetensors"
    measure "add-level, 4 volumes, 50 steps" \
        add-level "$here/model.safetensors" --data "$healthy" --steps 50 -o "$here/levelled.safetensors"
    measure "compare, 2 volumes" \
        compare --region "$region" --data "$healthy" --names-file "$here/names.txt" --restorations 0 -o "$here/compared"
    measure "train cache, 4 volumes" train cache --region "$region" --data "$healthy" --hold-out 'toy_[01]' -o "$here/slices.npz"
    measure "train plant, 1 volume" train plant --region "$region" --data "$here/slices.npz" --model "$here/model.safetensors" \
        --store "$here/store" --count 1
    for network in vqvae prior vae; do
        measure "train $network, 5 steps" \
            train $network --region "$region" --data "$here/slices.npz" --steps 5 --out "$here/trained_$region"
    done
    measure "train detector, 5 steps" train detector --region "$region" --data "$here/slices.npz" --model "$here/model.safetensors" \
        --store "$here/store" --steps 5 --validations 1 --validation-volumes 2 --out "$here/detector"
    measure "train all --quick, 4 volumes" train all --region "$region" --data "$healthy" --quick -o "$here/all.safetensors"
    measure "quantise, 2 volumes" \
        quantise "$here/model.safetensors" --data "$healthy" --volumes 2 -o "$here/model.graphs"
    measure "benchmark --profile" \
        benchmark --region "$region" --volume "$one/toy/toy_0.nii.gz" --profile --restorations 0
}

all brain "$brain" brain-mri
all abdom "$ct" abdominal-ct
exit "$failed"
