#!/bin/sh
# Runs an image on toy volumes as the challenge does, and as users may. Needs docker and nothing else.
# usage: docker/smoke_test.sh IMAGE [OPTIONS of docker run, such as --gpus all]
set -eu
if [ "$#" -lt 1 ]; then
    echo "usage: $0 IMAGE [OPTIONS of docker run]" >&2
    exit 2
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
image=$1
shift
options=$*
work=$(mktemp -d)
container=mood-smoke-$$
start=$(date +%s)

cleanup() { # the image's root removes what its users have written
    docker rm --force "$container" >/dev/null 2>&1 || true
    docker run --rm --network none -v "$work:/mnt/pred" "$image" find /mnt/pred -mindepth 1 -delete || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { echo "[$(($(date +%s) - start)) s] $*"; }

fail() {
    echo "smoke test: $*" >&2
    exit 1
}

# run [OPTIONS of docker run] IMAGE COMMAND...
run() {
    # shellcheck disable=SC2086  # several words
    docker run --rm --read-only --network none $options "$@"
}

# expect STATUS COMMAND...: what it prints is in $work/log
expect() {
    want=$1
    shift
    status=0
    "$@" >"$work/log" 2>&1 || status=$?
    if [ "$status" -ne "$want" ]; then
        cat "$work/log" >&2
        fail "expected exit status $want, found $status: $*"
    fi
}

# log_says PATTERN
log_says() {
    grep -qE -e "$1" "$work/log" || {
        cat "$work/log" >&2
        fail "expected these lines to say: $1"
    }
}

# predict STATUS TOYS OUT [OPTIONS of docker run] IMAGE COMMAND...: predictions in $work/OUT, which only its owner may see
predict() {
    want=$1 toys=$2 out=$3
    shift 3
    [ -d "$work/$out" ] || mkdir -m 700 "$work/$out"
    expect "$want" run -v "$work/$toys:/mnt/data:ro" -v "$work/$out:/mnt/pred" "$@"
}

# check TASK TOYS OUT [NAME...]
check() {
    task=$1 toys=$2 out=$3
    shift 3
    run -i -v "$work/$toys:/mnt/data:ro" -v "$work/$out:/mnt/pred:ro" "$image" \
        python3 - "$task" /mnt/data /mnt/pred "$@" <"$here/check_outputs.py" || fail "$out: see above"
}

commands() {
    say "commands and exit statuses"
    expect 0 run "$image" --help
    log_says '^usage: '
    for words in frobnicate pixel 'sample liver'; do
        # shellcheck disable=SC2086  # several words
        expect 2 run "$image" $words
        [ "$(wc -l <"$work/log")" -eq 1 ] || fail "$words: expected one line of error"
    done
    expect 7 run "$image" bash -c 'exit 7'
    expect 0 run "$image" python3 -c '
import deepbet, json
bill = json.load(open("/workspace/sbom.cdx.json"))
assert bill["bomFormat"] == "CycloneDX" and {"torch", "numpy", "deepbet"} <= {c["name"] for c in bill["components"]}'
}

toys() {
    say "toy volumes in the challenge's folders"
    for region in brain abdom; do
        run -v "$work:/mnt/pred" "$image" python3 scripts/make_toy.py --region "$region" --size 16 --volumes 2 \
            --seed 1 -o /mnt/pred
    done
}

as_the_challenge() {
    for region in brain abdom; do
        for task in sample pixel; do
            say "as the challenge runs it: $task $region"
            predict 0 "$region/toy" "$task-$region" "$image" \
                sh "/workspace/run_${task}_$region.sh" /mnt/data /mnt/pred
            log_says ' on (cpu|cuda)'
            cat "$work/log"
            check "$task" "$region/toy" "$task-$region"
            run -v "$work/$task-$region:/mnt/data:ro" -v "$work/$region/toy_label:/mnt/pred:ro" "$image" \
                python3 scripts/evaluate.py --pred /mnt/data --label /mnt/pred --task "$task"
        done
    done
}

by_each_engine() {
    say "on a CPU: in int8 where the processor has VNNI, by torch where that is hidden, or asked for"
    vnni=$(run "$image" python3 -c 'from mood_submission.runtime.processor import has_vnni; print(has_vnni())')
    predict 0 brain/toy engine-auto "$image" sample brain --device cpu
    if [ "$vnni" = True ]; then
        log_says ' on cpu by onnx in int8'
    else
        log_says 'torch computes instead'
    fi
    check sample brain/toy engine-auto
    predict 0 brain/toy engine-hidden -e ONEDNN_MAX_CPU_ISA=AVX2 "$image" sample brain --device cpu
    log_says 'torch computes instead, in float32: expected a processor with'
    log_says ' on cpu by torch in float32'
    check sample brain/toy engine-hidden
    predict 0 brain/toy engine-torch -e ONEDNN_MAX_CPU_ISA=AVX2 "$image" sample brain --device cpu --engine torch
    log_says ' on cpu by torch in float32'
    run -v "$work:/mnt/pred:ro" "$image" bash -c 'diff -r /mnt/pred/engine-hidden /mnt/pred/engine-torch' ||
        fail "expected the same scores where torch computes instead as where it is asked for"
}

as_a_user() {
    uid=$((20000 + $$ % 10000)) gid=$((30000 + $$ % 10000))
    say "as user $uid:$gid, who has no name and no home"
    run -v "$work:/mnt/pred" "$image" install -d -m 700 -o "$uid" -g "$gid" /mnt/pred/user-sample /mnt/pred/user-pixel
    predict 0 brain/toy user-sample --user "$uid:$gid" "$image" sample brain
    check sample brain/toy user-sample
    run -v "$work:/mnt/pred:ro" "$image" bash -c 'diff -r /mnt/pred/sample-brain /mnt/pred/user-sample' ||
        fail "expected the same scores whoever asks"
    predict 0 abdom/toy user-pixel --user "$uid:$gid" "$image" pixel abdom --slices 4
    check pixel abdom/toy user-pixel
}

with_little_memory() {
    say "with --memory 2g"
    predict 0 abdom/toy memory --memory 2g "$image" sh /workspace/run_pixel_abdom.sh /mnt/data /mnt/pred --slices 8
    check pixel abdom/toy memory
}

with_a_corrupt_file() {
    say "with a corrupt file among good ones"
    mkdir "$work/corrupt"
    cp "$work"/brain/toy/*.nii.gz "$work/corrupt"
    head -c 1000 "$work/brain/toy/toy_0.nii.gz" >"$work/corrupt/bad.nii.gz"
    predict 1 corrupt corrupt-sample "$image" sh /workspace/run_sample_brain.sh /mnt/data /mnt/pred
    log_says 'bad\.nii\.gz'
    check sample corrupt corrupt-sample bad.nii.gz
}

with_a_full_disk() {
    say "with no room for a prediction, which leaves nothing half-written"
    # shellcheck disable=SC2016  # for the container's shell
    expect 1 run -v "$work/brain/toy:/mnt/data:ro" --tmpfs /mnt/pred:size=4k "$image" bash -c \
        'sh /workspace/run_pixel_brain.sh /mnt/data /mnt/pred --slices 2 --restorations 1
         status=$?; ls -A /mnt/pred; exit $status'
    log_says 'toy_0\.nii\.gz: .*No space left on device'
    log_says '2 of 2 volumes failed'
    [ "$(tail -n 1 "$work/log")" = "$(grep 'volumes failed' "$work/log")" ] || fail "expected an empty folder"
    mkdir "$work/read-only"
    expect 2 run -v "$work/brain/toy:/mnt/data:ro" -v "$work/read-only:/mnt/pred:ro" "$image" pixel brain
    [ "$(wc -l <"$work/log")" -eq 1 ] || fail "a folder that is read-only: expected one line of error"
}

in_two_processes() {
    say "in two processes, as with two GPUs"
    predict 0 brain/toy two -e MOOD_PROCESSES=2 "$image" sh /workspace/run_sample_brain.sh /mnt/data /mnt/pred
    log_says 'process 2 of 2'
    run -v "$work:/mnt/pred:ro" "$image" bash -c 'diff -r /mnt/pred/sample-brain /mnt/pred/two' ||
        fail "expected the same scores in two processes"
}

resumed() {
    say "resumed, with a report"
    rm -f "$work/report.json"
    mkdir "$work/resumed"
    expect 0 run -v "$work/sample-brain:/mnt/before:ro" -v "$work/brain/toy:/mnt/data:ro" -v "$work/resumed:/mnt/pred" \
        "$image" bash -c 'cp /mnt/before/toy_0.nii.gz.txt /mnt/pred &&
        sh /workspace/run_sample_brain.sh /mnt/data /mnt/pred --resume --report /mnt/pred/report.json'
    log_says '1 of 2 volumes had their prediction already'
    run -v "$work/resumed:/mnt/pred" "$image" bash -c 'grep -q "\"resumed\": 1" /mnt/pred/report.json &&
        rm /mnt/pred/report.json' || fail "expected a report with one volume resumed"
    run -v "$work:/mnt/pred:ro" "$image" bash -c 'diff -r /mnt/pred/sample-brain /mnt/pred/resumed' ||
        fail "expected the same scores, resumed or not"
}

with_other_weights() {
    say "with a mounted model file, here the abdomen's for the brain, which is found out"
    run "$image" cat /workspace/weights/abdom.safetensors >"$work/my.safetensors"
    predict 2 brain/toy weights -v "$work/my.safetensors:/workspace/weights/brain.safetensors:ro" "$image" sample brain
    log_says 'brain\.safetensors: expected a model of region brain, found abdom'
}

stopped() {
    signal=$1
    say "stopped by SIG$signal"
    mkdir -m 700 "$work/stopped-$signal"
    # shellcheck disable=SC2086  # several words
    docker run --detach --name "$container" --read-only --network none $options -v "$work/brain/toy:/mnt/data:ro" \
        -v "$work/stopped-$signal:/mnt/pred" "$image" \
        sh /workspace/run_pixel_brain.sh /mnt/data /mnt/pred --restorations 2000 >/dev/null
    tries=0
    until docker logs "$container" 2>&1 | grep -q ' on '; do
        tries=$((tries + 1))
        [ "$tries" -le 120 ] || fail "expected the run to begin"
        sleep 1
    done
    docker kill --signal "$signal" "$container" >/dev/null
    status=$(docker wait "$container")
    docker logs "$container" >"$work/log" 2>&1
    docker rm "$container" >/dev/null
    [ "$status" -eq 130 ] || fail "expected exit status 130, found $status"
    log_says 'stopped'
}

commands
toys
as_the_challenge
by_each_engine
as_a_user
with_little_memory
with_a_corrupt_file
with_a_full_disk
in_two_processes
resumed
with_other_weights
stopped INT
stopped TERM
say "passed"
