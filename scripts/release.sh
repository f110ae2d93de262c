#!/bin/sh
# Makes a release of what is committed: sets the version and the changelog's heading, builds wheel, sdist and image, lists what
# they need (CycloneDX), and writes it all to dist/ with its checksums. Then it commits and tags, here alone: nothing is
# published. usage: scripts/release.sh VERSION [--dry-run]   such as: scripts/release.sh 0.3.0
#
# With --dry-run all is built, and no file of the checkout, no commit and no tag is made. The image is left in the docker engine
# as mood-submission:VERSION; where no engine answers, that is said. Set PYTHON to choose the interpreter.
set -eu
cd "$(dirname "$0")/.."
fail() {
    echo "release.sh: $1" >&2
    exit 2
}

version=${1:-}
printf '%s\n' "$version" | grep -Eqx '[0-9]+\.[0-9]+\.[0-9]+' || fail "expected a version such as 0.3.0, found '$version'"
case ${2:-} in
"") dry=no ;;
--dry-run) dry=yes ;;
*) fail "expected --dry-run or nothing more, found '$2'" ;;
esac
[ -z "$(git status --porcelain)" ] || fail "expected a clean tree, found changes: see git status"
! git rev-parse -q --verify "refs/tags/v$version" >/dev/null || fail "expected a new version, found the tag v$version"
! grep -q "^## \[$version\]" CHANGELOG.md || fail "CHANGELOG.md: expected no heading of $version yet, found one"
now=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' mood_submission/version.py)
[ "$(printf '%s\n' "$now" "$version" | sort -V | tail -n 1)" = "$version" ] || fail "expected a version from $now on, found '$version'"
awk '/^## /{here = /^## \[Unreleased\]/} here && /^- /{found = 1} END {exit !found}' CHANGELOG.md ||
    fail "CHANGELOG.md: expected changes below ## [Unreleased], found none"

# Everything is made of a copy of the commit, so that nothing else of this folder gets into it.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source"
git archive HEAD | tar -x -C "$work/source"
out=$PWD/dist
changed="mood_submission/version.py CHANGELOG.md Dockerfile"
(
    cd "$work/source"
    sed "s/^__version__ = .*/__version__ = \"$version\"/" mood_submission/version.py >"$work/version.py"
    sed "s/^## \[Unreleased\]/&\n\n## [$version] - $(date -u +%Y-%m-%d)/" CHANGELOG.md >"$work/CHANGELOG.md"
    sed "s/^ARG VERSION=.*/ARG VERSION=$version/" Dockerfile >"$work/Dockerfile"
    for file in $changed; do
        cat "$work/${file##*/}" >"$file"
    done
)

rm -rf "$out"
mkdir "$out"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "build>=1.2" "cyclonedx-bom>=7,<8"
"$work/venv/bin/python" -m build --outdir "$out" "$work/source"
# The requirements of the package, at the versions that the tests have run with; what these require is not listed. The list needs a
# version that stands there as text.
sed "s/^dynamic = .*/version = \"$version\"/" "$work/source/pyproject.toml" >"$work/pyproject.toml"
"$work/venv/bin/python" -m cyclonedx_py requirements "$work/source/requirements.txt" --pyproject "$work/pyproject.toml" \
    --output-format JSON --output-file "$out/mood_submission-$version.cdx.json"
if docker version >/dev/null 2>&1; then
    # shellcheck disable=SC2086  # several flags
    docker build ${BUILD_FLAGS:-} --build-arg VERSION="$version" --build-arg REVISION="$(git rev-parse HEAD)" \
        -t "mood-submission:$version" "$work/source"
    docker image inspect --format '{{.Id}}' "mood-submission:$version" >"$out/mood_submission-$version.image.txt"
    # All packages of the image, which has listed them itself.
    docker run --rm --entrypoint cat "mood-submission:$version" /workspace/sbom.cdx.json >"$out/mood_submission-$version.image.cdx.json"
else
    echo "release.sh: no image, because no docker engine answers" >&2
fi
(cd "$out" && sha256sum -- * >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)

if [ "$dry" = no ]; then
    for file in $changed; do
        cat "$work/${file##*/}" >"$file"
    done
    # shellcheck disable=SC2086  # several files
    git commit -q -m "Release $version" -- $changed
    git tag -a "v$version" -m "Version $version"
    echo "release.sh: committed, and tagged v$version; git push --follow-tags would publish it"
fi
ls -l "$out"
