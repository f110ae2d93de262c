"""`scripts/release.sh`: what it refuses, and what it does to the checkout. Its tools are stand-ins here, which build nothing."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, needs_linux

pytestmark = [needs_linux, pytest.mark.slow]

# A Python whose `-m venv FOLDER` makes a folder with itself in it, and whose `-m build` writes the two files.
PYTHON = """#!/bin/sh
case "$2" in
venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
build)
    version=$(sed -n 's/^__version__ = "\\(.*\\)"/\\1/p' "$5/mood_submission/version.py")
    echo wheel >"$4/mood_submission-$version-py3-none-any.whl"
    echo sdist >"$4/mood_submission-$version.tar.gz" ;;
cyclonedx_py) for last; do :; done; echo '{"bomFormat": "CycloneDX"}' >"$last" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A small repository with the files that a release changes."""
    folder = tmp_path / "checkout"
    files = "scripts/release.sh mood_submission/version.py CHANGELOG.md Dockerfile .gitignore pyproject.toml"
    for name in files.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("python", PYTHON), ("docker", "#!/bin/sh\nexit 1\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def release(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    tools = checkout.parent / "tools"
    environment = {
        "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
        "PYTHON": str(tools / "python"),
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }
    command = [checkout / "scripts" / "release.sh", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def state(checkout: Path) -> tuple[str, ...]:
    return git(checkout, "log", "--all", "--format=%H"), git(checkout, "tag"), git(checkout, "status", "--porcelain")


def test_what_cannot_be_released_is_refused_in_one_line(checkout):
    before = state(checkout)
    for words, told in (
        ([], "expected a version"),
        (["0.3"], "expected a version such as 0.3.0, found '0.3'"),
        (["0.3.0", "--dry"], "expected --dry-run or nothing more, found '--dry'"),
        (["0.1.0"], "expected no heading of 0.1.0 yet"),
        (["0.0.1"], "expected a version from "),
    ):
        run = release(checkout, *words)
        assert run.returncode == 2 and told in run.stderr and run.stderr.count("\n") == 1, run.stderr
    (checkout / "new.txt").write_text("")
    assert "expected a clean tree" in release(checkout, "9.0.0").stderr
    (checkout / "new.txt").unlink()
    assert state(checkout) == before
    text = (checkout / "CHANGELOG.md").read_text("utf-8")
    released = text.replace("## [Unreleased]", "## [Unreleased]\n\n## [0.9.0] - 2026-01-01")
    (checkout / "CHANGELOG.md").write_text(released, "utf-8")
    git(checkout, "commit", "-q", "-a", "-m", "released")
    assert "expected changes below ## [Unreleased], found none" in release(checkout, "9.0.0").stderr
    git(checkout, "tag", "v9.0.0")
    assert "found the tag v9.0.0" in release(checkout, "9.0.0").stderr


def test_a_release_is_files_with_checksums_a_commit_and_a_tag(checkout):
    before = state(checkout)
    dry = release(checkout, "9.0.0", "--dry-run")
    assert dry.returncode == 0 and "no docker engine answers" in dry.stderr, dry.stderr
    assert state(checkout) == before
    shutil.rmtree(checkout / "dist")
    run = release(checkout, "9.0.0")
    assert run.returncode == 0, run.stderr
    names = {path.name for path in (checkout / "dist").iterdir()}
    built = {"mood_submission-9.0.0-py3-none-any.whl", "mood_submission-9.0.0.tar.gz", "mood_submission-9.0.0.cdx.json"}
    assert names == {*built, "SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=checkout / "dist", check=True)
    assert len((checkout / "dist" / "SHA256SUMS").read_text().splitlines()) == len(built)
    assert '__version__ = "9.0.0"' in (checkout / "mood_submission" / "version.py").read_text()
    assert re.search(r"^ARG VERSION=9\.0\.0$", (checkout / "Dockerfile").read_text(), re.M)
    heading = r"^## \[Unreleased\]\n\n## \[9\.0\.0\] - \d{4}-\d\d-\d\d\n\n### Added\n"
    assert re.search(heading, (checkout / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert git(checkout, "tag").split() == ["v9.0.0"] and git(checkout, "status", "--porcelain") == ""
    assert git(checkout, "diff", "--name-only", "HEAD~1").split() == [
        "CHANGELOG.md",
        "Dockerfile",
        "mood_submission/version.py",
    ]
