#!/bin/sh
# usage: run_pixel_abdom.sh IN OUT [OPTIONS of python -m mood_submission predict]
# Writes one score a voxel for each volume of IN, as OUT/NAME.nii.gz.
if [ "$#" -lt 2 ]; then
    echo "usage: $0 IN OUT [OPTIONS]" >&2
    exit 2
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit
in=$1 out=$2
shift 2
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
exec "${PYTHON:-python3}" -m mood_submission predict --region abdom --task pixel --input="$in" --output="$out" "$@"
