"""Checks that the packed voxels of a MetaImage file are whole.

SimpleITK does not check that. Where it cannot unpack voxels, it returns whatever was in memory.
"""

import re
import zlib
from pathlib import Path
from typing import BinaryIO

from ..runtime.names import of_bytes

# How many bytes are read, and unpacked, at a time.
CHUNK = 1 << 20
# zlib's code for both formats that SimpleITK takes.
ZLIB_OR_GZIP = 47


def what_is_damaged(path: Path, start: bytes, size: int) -> str:
    """What is wrong with a MetaImage file's packed voxels. Empty for voxels that are whole, or not packed.

    path: of the header's file.
    start: the beginning of that file, with the whole header.
    size: how many bytes the unpacked voxels have.
    Raises OSError where the file of the voxels cannot be read.
    """
    header = re.search(rb"(?m)^[ \t]*ElementDataFile[ \t]*[=:][ \t]*([^\r\n]*)\r?\n?", start)
    if header is None or (_field(start[: header.start()], "CompressedData") or b"F")[:1] not in b"Tt1":
        return ""
    said = header[1].strip()
    local = said.upper() == b"LOCAL"
    if not local and (said.upper().startswith(b"LIST") or b"%" in said):
        return "packed voxels in several files"
    with open(path if local else path.parent / of_bytes(said), "rb") as file:
        file.seek(header.end() if local else max(0, _number(start[: header.start()], "HeaderSize")))
        most = _number(start[: header.start()], "CompressedDataSize")
        return "" if _unpacks_to(file, most or None, size) else "packed voxels that are damaged"


def _field(text: bytes, name: str) -> bytes:
    found = re.search(rb"(?m)^[ \t]*" + name.encode() + rb"[ \t]*[=:][ \t]*([^\r\n]*)", text)
    return found[1].strip() if found else b""


def _number(text: bytes, name: str) -> int:
    said = _field(text, name)
    return int(said) if re.fullmatch(rb"-?\d{1,18}", said) else 0


def _unpacks_to(file: BinaryIO, most: int | None, size: int) -> bool:
    """Whether the next `most` bytes of a file, or all, unpack to `size` bytes, and the checksum after them is right."""
    unpacker, total = zlib.decompressobj(ZLIB_OR_GZIP), 0
    try:
        while not unpacker.eof and total <= size:
            packed = unpacker.unconsumed_tail
            if not packed:
                packed = file.read(CHUNK if most is None else min(CHUNK, most))
                most = None if most is None else most - len(packed)
            unpacked = unpacker.decompress(packed, CHUNK)
            total += len(unpacked)
            if not packed and not unpacked:
                return False
    except zlib.error:
        return False
    return unpacker.eof and total == size
