"""An extension of mkdocstrings: makes Markdown of the package's docstrings, which are plain text.

Lines such as `device: where the networks run.` become a list, and lines that begin with Returns or Raises a paragraph.
"""

import re
from typing import Any

import griffe

# A description of one or more names, such as `vqvae, prior: the networks.` It stands at the beginning of its line.
DESCRIBED = re.compile(r"^([a-z]\w*(?:, [a-z]\w*)*): (?=\S)")


def as_markdown(text: str) -> str:
    """The text of a docstring as Markdown."""
    lines: list[str] = []
    in_list = False
    for line in text.splitlines():
        described = DESCRIBED.match(line)
        continued = in_list and line.startswith(" ")
        if (described and not in_list) or (in_list and not described and not continued) or _ends(line):
            lines.append("")
        in_list = bool(described) or continued
        if in_list or not line.startswith("    "):
            line = _without_marks(line)
        if described:
            names = ", ".join(f"`{name}`" for name in described[1].split(", "))
            line = f"- {names}: {line[described.end() :]}"
        lines.append(line)
    return "\n".join(lines)


def _without_marks(line: str) -> str:
    """The line with what Markdown would take for a link, a tag or emphasis escaped. Code in backticks stays."""
    parts = line.split("`")
    return "`".join(part if number % 2 else re.sub(r"([\[<*])", r"\\\1", part) for number, part in enumerate(parts))


def _ends(line: str) -> bool:
    return line.startswith(("Returns ", "Raises "))


class PlainDocstrings(griffe.Extension):
    """Turns each docstring into Markdown as it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring.value = as_markdown(obj.docstring.value)
