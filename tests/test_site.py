"""The documentation as a site: it builds without a warning, has every page, and a reference of every public name."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_architecture import MODULES
from test_docs import PAGES

pytestmark = pytest.mark.slow
pytest.importorskip("mkdocs", reason="mkdocs is not installed (requirements-dev.txt)")
pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocstrings is not installed (requirements-dev.txt)")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site's folder. What is built here is the checkout as it is."""
    folder = tmp_path_factory.mktemp("site") / "site"
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def public_names() -> list[str]:
    """Every public function and class of the package, and every public method of these, by its dotted name."""
    found = []
    for module, file in MODULES.items():
        if module.rpartition(".")[2].startswith("_"):
            continue
        place = ".".join(["mood_submission", module]).rstrip(".")
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                found.append(f"{place}.{node.name}")
                within = node.body if isinstance(node, ast.ClassDef) else []
                found += [
                    f"{place}.{node.name}.{part.name}"
                    for part in within
                    if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")
                ]
    return found


def test_the_reference_has_every_public_name(site):
    ids: set[str] = set()
    for page in (site / "reference").rglob("*.html"):
        ids |= set(re.findall(r'id="([\w.]+)"', page.read_text("utf-8")))
    names = public_names()
    assert len(names) > 500 and "mood_submission.predictor.Predictor.pixel_scores" in names
    assert [name for name in names if name not in ids] == []


def test_docstrings_become_lists_and_paragraphs(site):
    text = (site / "reference" / "mood_submission.model_file" / "index.html").read_text("utf-8")
    assert re.search(r"<li><code>device</code>: see <code>runtime\.devices</code>", text)
    assert re.search(r"<p>Raises ModelError, in one line", text)


def test_every_page_of_the_repository_is_a_page_of_the_site(site):
    for page in PAGES:
        path = page.relative_to(ROOT)
        folder = path.parent if path.stem == "README" else path.with_suffix("")
        assert (site / folder / "index.html").is_file(), path
    assert (site / "docs" / "toy_brains.png").read_bytes() == (ROOT / "docs" / "toy_brains.png").read_bytes()
