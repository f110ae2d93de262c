#!/bin/sh
# usage: run_sample_abdom.sh IN OUT [OPTIONS of python -m mood_submission predict]
# Writes one score a volume of IN, as OUT/NAME.nii.gz.txt.
if [ "$#" -lt 2 ]; then
    echo "usage: $0 IN OUT [OPTIONS]" >&2
    exit 2
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit
in=$1 out=$2
shift 2
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
exec "${PYTHON:-python3}" -m mood_submission predict --region abdom --task sample --input="$in" --output="$out" "$@"
