"""Check a folder of predictions against the volumes they belong to. Reads its code from stdin in the smoke test, so that
the image holds no test.

usage: python3 - sample|pixel IN OUT [NAME...]   NAME: a volume of IN that is to have no prediction
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np


def check(ok: bool, file: Path, text: str) -> None:
    if not ok:
        sys.exit(f"{file.name}: {text}")


def check_pixel(source: Path, file: Path) -> None:
    before, after = nib.load(source), nib.load(file)
    scores = np.asarray(after.dataobj)
    check(after.shape == before.shape, file, f"expected shape {before.shape}, found {after.shape}")
    check(np.array_equal(after.affine, before.affine), file, "expected the input's affine")
    check(after.get_data_dtype() == np.float32 and scores.dtype == np.float32, file, "expected unscaled float32")
    check(
        np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1,
        file,
        "expected finite values in 0 .. 1",
    )
    check(scores.std() > 0, file, "expected scores that differ")


def check_sample(_: Path, file: Path) -> None:
    words = file.read_text().split()
    check(len(words) == 1, file, f"expected one number, found {words}")
    check(0 <= float(words[0]) <= 1, file, f"expected a number in 0 .. 1, found {words[0]}")  # NaN is not


def main() -> None:
    task, source, out, *without = sys.argv[1:]
    ending, one = {"pixel": ("", check_pixel), "sample": (".txt", check_sample)}[task]
    volumes = [path for path in sorted(Path(source).iterdir()) if path.name not in without]
    expected, found = {path.name + ending for path in volumes}, {path.name for path in Path(out).iterdir()}
    if not expected or found != expected:
        sys.exit(f"{out}: expected {sorted(expected)}, found {sorted(found)}")
    for path in volumes:
        one(path, Path(out) / (path.name + ending))
    print(f"{len(volumes)} {task} predictions are as they should be")


if __name__ == "__main__":
    main()
