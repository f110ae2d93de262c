#!/usr/bin/env python3
"""Break valid NIfTI, MetaImage and NRRD files at random and predict each: every one must end in a prediction or in one line that
names it.

No networks run: what is tested is reading, preparing and writing. Files that went wrong are kept. Memory that is given back is
overwritten meanwhile, so that whoever still looks at it is found out.
"""

import argparse
import faulthandler
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzzing import fuzz  # noqa: E402
from tqdm import tqdm  # noqa: E402

from mood_submission.cli.output import quiet  # noqa: E402
from mood_submission.lab.measuring.benchmark import FreeNetworks  # noqa: E402
from mood_submission.predictor import Predictor  # noqa: E402
from mood_submission.runtime.option_types import positive

FAILS_LOUDLY = {"MALLOC_PERTURB_": "165", "PYTHONMALLOC": "debug"}


def main() -> int:
    faulthandler.enable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=positive, default=5000, metavar="N", help="files to break (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other files (default: 0)")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="for files that went wrong (default: temporary)"
    )
    args = parser.parse_args()
    folder = args.out or Path(tempfile.mkdtemp(prefix="mood-fuzz-"))
    quiet()
    with tqdm(total=args.cases, unit="file", disable=None) as bar:
        counts, wrong = fuzz(Predictor(FreeNetworks("brain"), 2, 1), args.cases, args.seed, folder, bar.update)
    for _, line in wrong:
        print(line, file=sys.stderr)
    print(f"{args.cases} files: {counts['predicted']} predicted, {counts['refused']} refused, {counts['wrong']} wrong")
    if not wrong and args.out is None:
        folder.rmdir()
    return 1 if wrong else 0


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in FAILS_LOUDLY.items()):  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | FAILS_LOUDLY)
    sys.exit(main())
