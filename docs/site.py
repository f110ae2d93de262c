"""Hooks of mkdocs: what the site is made of.

The site's pages are the repository's own, at the same paths, so that each link works in both. The reference has a page for each
room of the package, with all its modules, so that no list of names stands here.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mood_submission"
# The pages outside `docs/`.
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "weights/README.md")


def pages() -> list[str]:
    """The paths of all pages that are written by hand."""
    found = [*(ROOT / "docs").glob("*.md"), *(ROOT / "integrations").glob("*/README.md")]
    return [*OUTSIDE, *sorted(file.relative_to(ROOT).as_posix() for file in found)]


def linked_files() -> list[str]:
    """The files that pages link to, and that are no pages: pictures, the licence, examples."""
    found = set()
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text("utf-8")):
            path = (ROOT / page).parent / target
            if "://" not in target and path.is_file() and path.suffix != ".md":
                found.add(path.resolve().relative_to(ROOT).as_posix())
    return sorted(found)


def rooms() -> dict[str, list[str]]:
    """The modules of each room, by its dotted name. A room is a folder, or a module beside the folders."""
    found: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if package else parts)
        if not parts[-1].startswith("_") or package:
            room = module if package or len(parts) == 2 else module.rpartition(".")[0]
            found.setdefault(room, []).append(module)
    return found


def reference_page(room: str) -> str:
    return f"reference/{room}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"] = [{room: reference_page(room)} for room in rooms()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The repository's files in place of those of `docs/` alone. The theme's own files stay."""
    kept = [file for file in files if Path(file.src_dir or "") != Path(config.docs_dir)]
    for path in [*pages(), *linked_files()]:
        kept.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    for room, modules in rooms().items():
        blocks = "\n".join(f"::: {module}\n" for module in modules)
        kept.append(File.generated(config, reference_page(room), content=f"# {room}\n\n{blocks}"))
    return Files(kept)
