"""Whether a model file is what it was when it was written."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, uint8

SUMS = "SHA256SUMS"  # beside shipped files: what `sha256sum` prints


def file_sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_sha256(tensors: Mapping[str, Tensor], about: str) -> str:
    """Of the description and of the tensors by name: their types, shapes and bytes."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.reshape(-1).view(uint8).numpy()))
    return digest.hexdigest()


def check(file: Path, content: str, recorded: str | None) -> str:
    """The file's sha256. Raises ValueError where `content`, of what is in it, is not as `recorded` in it, or where it
    records none and is none of the files that the SHA256SUMS beside it lists under its name or another."""
    if recorded is not None and recorded != content:
        raise ValueError(
            f"a damaged file: its content has the sha256 {content}, not {recorded} as written in it"
        )
    found, sums = file_sha256(file), _sums(file.with_name(SUMS))
    if recorded is None and file.name in sums and found not in sums.values():
        raise ValueError(f"a file of sha256 {found}, not {sums[file.name]} as {SUMS} beside it says")
    return found


def _sums(file: Path) -> dict[str, str]:
    """sha256 by file name; empty where there is no such file."""
    if not file.exists():
        return {}
    lines = file.read_text("utf-8", "surrogateescape").split("\n")
    parts = [line.split(maxsplit=1) for line in lines]
    return {part[1].removeprefix("*"): part[0] for part in parts if len(part) == 2}
