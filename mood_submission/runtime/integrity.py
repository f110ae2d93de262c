"""Checks that a model file is unchanged since it was written."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, uint8

# The file beside shipped files that holds what `sha256sum` prints.
SUMS = "SHA256SUMS"


def file_sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_sha256(tensors: Mapping[str, Tensor], about: str) -> str:
    """The digest of a model's description and of its tensors: their names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.reshape(-1).view(uint8).numpy()))
    return digest.hexdigest()


def check(file: Path, content: str, recorded: str | None) -> str:
    """The sha256 of a model file, checked.

    content: what `content_sha256` gives for the file's content now.
    recorded: the digest that the file holds. None for an older file without one. That is checked against the SHA256SUMS beside
        it: where this lists the file's name, it must list the file's sha256, under any name.
    Raises ValueError for a file that fails its check.
    """
    if recorded is not None and recorded != content:
        raise ValueError(f"a damaged file: its content has the sha256 {content}, not {recorded} as written in it")
    found, sums = file_sha256(file), _sums(file.with_name(SUMS))
    if recorded is None and file.name in sums and found not in sums.values():
        raise ValueError(f"a file of sha256 {found}, not {sums[file.name]} as {SUMS} beside it says")
    return found


def _sums(file: Path) -> dict[str, str]:
    """The digests in a SHA256SUMS by file name. Empty where there is no such file."""
    if not file.exists():
        return {}
    lines = file.read_text("utf-8", "surrogateescape").split("\n")
    pairs = [line.split(maxsplit=1) for line in lines]
    return {pair[1].removeprefix("*"): pair[0] for pair in pairs if len(pair) == 2}
