#!/bin/sh
# What `docker run IMAGE ...` starts. Every way out is an exec, so that signals reach Python and its exit status is the
# container's.
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd) || exit

case ${1:---help} in
--help | -h)
    cat <<'USAGE'
usage: docker run [--gpus all] -v IN:/mnt/data:ro -v OUT:/mnt/pred IMAGE COMMAND

  pixel brain|abdom [OPTIONS]     one score a voxel, OUT/NAME.nii.gz
  sample brain|abdom [OPTIONS]    one score a volume, OUT/NAME.nii.gz.txt
  sh /workspace/run_pixel_brain.sh /mnt/data /mnt/pred [OPTIONS]
                                  the same as the challenge calls it; likewise pixel_abdom, sample_brain, sample_abdom
  --help, --version
  bash, python3 ... or any other program of the image

OPTIONS, such as --slices N, --device cpu: docker run IMAGE pixel brain --help
USAGE
    exit 0
    ;;
--version)
    cd "$root" || exit
    exec "${PYTHON:-python3}" -m mood_submission --version
    ;;
pixel | sample)
    case ${2-} in
    brain | abdom) ;;
    *)
        echo "mood-submission: $1: expected brain or abdom, found ${2:-nothing}" >&2
        exit 2
        ;;
    esac
    script=$root/run_$1_$2.sh
    shift 2
    exec sh "$script" /mnt/data /mnt/pred "$@"
    ;;
esac
if ! command -v -- "$1" >/dev/null 2>&1; then
    echo "mood-submission: expected pixel, sample, --help or a program, found $1" >&2
    exit 2
fi
exec "$@"
