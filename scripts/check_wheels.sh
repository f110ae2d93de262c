#!/bin/sh
# Shows that everything that `pip install .` brings has wheels for every Python and every system that the project names, so
# that nothing is compiled. usage: scripts/check_wheels.sh [EXTRA ...]   such as: scripts/check_wheels.sh report skullstrip
#
# It asks the package index alone: nothing is installed, and no wheel is downloaded. Needs uv (`pip install uv`), which solves
# for other systems than this one. The exit status is 1 where something has no wheel; the reason is printed below the table.
set -eu
cd "$(dirname "$0")/.."
if ! command -v uv >/dev/null; then
    echo "$0: expected the program uv (pip install uv), found none" >&2
    exit 1
fi
# the Pythons that pyproject.toml lists
pythons=$(sed -n 's/.*"Programming Language :: Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)
platforms="x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin x86_64-pc-windows-msvc"
wanted="torch numpy scipy SimpleITK isal safetensors"
# the oldest macOS that torch has wheels for
export MACOSX_DEPLOYMENT_TARGET="${MACOSX_DEPLOYMENT_TARGET:-14.0}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
for extra in "$@"; do
    set -- "$@" --extra "$extra"
    shift
done

# shellcheck disable=SC2086  # several names
printf "%-7s %-26s %-9s" Python system packages
# shellcheck disable=SC2086
printf " %-9s" $wanted
echo
for python in $pythons; do
    for platform in $platforms; do
        printf "%-7s %-26s " "$python" "$platform"
        if uv pip compile pyproject.toml "$@" --python-platform "$platform" --python-version "$python" --only-binary :all: \
            --no-config --no-header --no-annotate --quiet >"$work/solved" 2>"$work/reason"; then
            printf "%-9s" "$(wc -l <"$work/solved")"
            for name in $wanted; do
                printf " %-9s" "$(sed -n "s/^$name==\([^ ;]*\).*/\1/Ip" "$work/solved")"
            done
            echo
        else
            status=1
            echo "no wheel"
            { echo "Python $python, $platform:" && cat "$work/reason"; } >>"$work/reasons"
        fi
    done
done
if [ "$status" != 0 ]; then
    cat "$work/reasons"
fi
exit $status
