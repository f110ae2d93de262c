"""NIfTI, MetaImage and NRRD files that are wrong in as many ways as chance finds, and what a prediction may make of them."""

import gzip
import re
import signal
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from mood_submission.predictor import Predictor
from mood_submission.running.run_folder import predict_files
from mood_submission.runtime.contract import TASKS
from mood_submission.volumes.metaimage import same_locale

DTYPES = ("u1", "i1", "<i2", ">i2", "<u2", "<i4", ">i8", "<f4", ">f4", "<f8")
EXTREMES = (0, 1, -1, 2, 127, 255, 32767, -32768, 2**31 - 1, 1e-40, 1e38, -1e38, np.nan, np.inf, -np.inf)
TOO_LONG = 60  # seconds that no file of this size may take


class TookTooLong(BaseException):
    """No Exception, which a run would take for the file's failure."""


def valid_file(rng: np.random.Generator) -> bytes:
    """A small volume of some type, scaling, orientation and NIfTI version, as an unpacked file."""
    shape = tuple(int(n) for n in rng.integers(1, 9, 3))
    dtype = np.dtype(rng.choice(DTYPES))
    data = (rng.random(shape) * 100).astype(dtype)
    kind = rng.choice([nib.Nifti1Image, nib.Nifti2Image])
    axes = np.eye(4)[rng.permutation(3)] * rng.choice([-1, 1], 3)[:, None] * rng.uniform(0.5, 3, 3)[:, None]
    image = kind(data, np.vstack([axes, [0, 0, 0, 1]]), kind.header_class(endianness=rng.choice(["<", ">"])))
    image.header.set_data_dtype(dtype)
    if rng.random() < 0.5:
        image.header.set_slope_inter(rng.uniform(-2, 2), rng.uniform(-100, 100))
    return image.to_bytes()


ITK_TYPES = {  # by numpy's name: what MetaImage and NRRD call it
    "f4": ("MET_FLOAT", "float"),
    "f8": ("MET_DOUBLE", "double"),
    "i2": ("MET_SHORT", "short"),
    "u1": ("MET_UCHAR", "uchar"),
}
WORDS = ("none", "-1", "0", "4294967296", "1e308", "nan", "inf", "", "LIST", "True", "raw", "gzip", "?")


def valid_itk_file(rng: np.random.Generator) -> tuple[bytes, bytes, str]:
    """The text and the voxels of a small volume, and the ending of its format. Half of them are float32 in RAS order, which a
    careless reader would hand out without a copy."""
    shape = tuple(int(n) for n in rng.integers(1, 12, 3))
    plain = rng.random() < 0.5
    kind = "f4" if plain else str(rng.choice(list(ITK_TYPES)))
    order = str(rng.choice(["<", ">"]))
    axes = np.diag([-1.0, -1, 1]) if plain else np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    voxels = (rng.random(shape) * 100).astype(order + kind).tobytes(order="F")
    packed, spacing, origin = rng.random() < 0.5, rng.uniform(0.5, 3, 3), rng.uniform(-90, 90, 3)
    numbers = lambda values: " ".join(f"{value:.6g}" for value in np.ravel(values))  # noqa: E731
    if rng.random() < 0.5:
        voxels = zlib.compress(voxels) if packed else voxels
        lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True"]
        lines += [f"BinaryDataByteOrderMSB = {order == '>'}", f"CompressedData = {packed}"]
        lines += [f"CompressedDataSize = {len(voxels)}"] if packed else []
        lines += [f"TransformMatrix = {numbers(axes.T)}", f"Offset = {numbers(origin)}"]
        lines += [f"ElementSpacing = {numbers(spacing)}", f"DimSize = {numbers(shape)}"]
        lines += [f"ElementType = {ITK_TYPES[kind][0]}", "ElementDataFile = LOCAL\n"]
        return "\n".join(lines).encode(), voxels, ".mha"
    vector = lambda values: f"({','.join(f'{value:.6g}' for value in values)})"  # noqa: E731
    lines = ["NRRD0004", f"type: {ITK_TYPES[kind][1]}", "dimension: 3", "space: left-posterior-superior"]
    lines += [f"sizes: {numbers(shape)}", f"space directions: {' '.join(map(vector, (axes * spacing).T))}"]
    lines += ["kinds: domain domain domain", f"endian: {'big' if order == '>' else 'little'}"]
    lines += [f"encoding: {'gzip' if packed else 'raw'}", f"space origin: {vector(origin)}\n\n"]
    return "\n".join(lines).encode(), gzip.compress(voxels) if packed else voxels, ".nrrd"


def broken_itk_file(rng: np.random.Generator) -> tuple[bytes, str]:
    """Such a file with up to three things wrong, words of its text or any bytes, and the ending of its format."""
    text, voxels, suffix = valid_itk_file(rng)
    content = text + voxels
    for _ in range(rng.integers(0, 4)):
        if rng.random() < 0.6:
            content = _other_word(content, len(text), rng)
        else:
            content = rng.choice(BYTES)(content, rng)
    return content, suffix


def _other_word(content: bytes, end: int, rng: np.random.Generator) -> bytes:
    """One word of the text at the beginning becomes another: an odd one, or another number."""
    places = [match.span() for match in re.finditer(rb"[^\s:=(),]+", content[:end])]
    if not places:
        return content
    start, stop = places[rng.integers(len(places))]
    word = str(rng.choice(WORDS)) if rng.random() < 0.5 else f"{rng.choice(EXTREMES):g}"
    return content[:start] + word.encode() + content[stop:]


def broken(content: bytes, rng: np.random.Generator) -> bytes:
    """The file with one to three things wrong: mostly in its header's fields, else in any of its bytes."""
    for _ in range(rng.integers(1, 4)):
        content = (_other_field if rng.random() < 0.6 else rng.choice(BYTES))(content, rng)
    return content


def _other_field(content: bytes, rng: np.random.Generator) -> bytes:
    """One number of one field of the header becomes another: an extreme one, or any."""
    version2 = content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    dtype = nib.Nifti2Header.template_dtype if version2 else nib.Nifti1Header.template_dtype
    if len(content) < dtype.itemsize:
        return content
    header = np.frombuffer(content[: dtype.itemsize], dtype.newbyteorder(rng.choice(["<", ">"]))).copy()
    field = header[0:1][rng.choice(dtype.names)].reshape(-1)
    place = rng.integers(len(field))
    with np.errstate(all="ignore"):
        if field.dtype.kind in "iuf" and rng.random() < 0.8:
            value = np.float64(rng.choice(EXTREMES))
            field[place : place + 1] = np.array([value]).astype(field.dtype)
        else:
            field[place] = np.frombuffer(rng.bytes(field.dtype.itemsize), field.dtype)[0]
    return header.tobytes() + content[dtype.itemsize :]


def _flipped(content: bytes, rng: np.random.Generator) -> bytes:
    values = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(0, max(1, len(values)), rng.integers(1, 20))
    if len(values):
        values[places] ^= rng.integers(1, 256, len(places), dtype=np.uint8)
    return values.tobytes()


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(0, len(content) + 1)]


def _grown(content: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(0, len(content) + 1))
    return content[:at] + rng.bytes(int(rng.integers(1, 400))) + content[at:]


def _wiped(content: bytes, rng: np.random.Generator) -> bytes:
    at, length = int(rng.integers(0, len(content) + 1)), int(rng.integers(1, 200))
    fill = bytes([rng.choice([0, 255])]) * len(content[at : at + length])
    return content[:at] + fill + content[at + length :]


BYTES = (_flipped, _cut, _grown, _wiped)


def broken_file(rng: np.random.Generator, folder: Path) -> Path:
    """A file in `folder`. One in three is MetaImage or NRRD. NIfTI may be packed, and broken after packing too."""
    if rng.random() < 1 / 3:
        content, suffix = broken_itk_file(rng)
        path = folder / f"case{suffix}"
        path.write_bytes(content)
        return path
    content, packed = broken(valid_file(rng), rng), rng.random() < 0.5
    if packed:
        content = gzip.compress(content, 1)
        if rng.random() < 0.4:
            content = rng.choice(BYTES)(content, rng)
    path = folder / ("case.nii.gz" if packed else "case.nii")
    path.write_bytes(content)
    return path


def check(predictor: Predictor, path: Path, task: str, out: Path) -> str:
    """What became of the file: "predicted" or "refused". Raises AssertionError for anything else."""
    with within(TOO_LONG), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (outcome,) = predict_files(predictor, [path], task, out)
    written = sorted(entry.name for entry in out.iterdir())
    name = path.name + (".txt" if task == "sample" else "")
    if outcome.status == "failed":
        assert outcome.message.startswith(f"{path}: expected ") and ", found" in outcome.message, outcome.message
        assert "\n" not in outcome.message and written == [], (outcome.message, written)
        return "refused"
    assert outcome.status == "predicted" and written == [name], (outcome, written)
    if task == "sample":
        assert 0 <= float((out / name).read_text()) <= 1
    else:
        scores = _scores_of_itk(path, out / name) if path.suffix in (".mha", ".nrrd") else _scores(path, out / name)
        assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1
    return "predicted"


def _scores(path: Path, written: Path) -> np.ndarray:
    """What was written, which lies where the file does."""
    before, after = nib.load(path), nib.load(written)
    assert after.shape == before.shape[:3] and all(size == 1 for size in before.shape[3:]), path
    assert np.array_equal(before.affine, after.affine, equal_nan=True)
    return np.asarray(after.dataobj)


@same_locale()
def _scores_of_itk(path: Path, written: Path) -> np.ndarray:
    """The same for MetaImage and NRRD."""
    before, after = sitk.ReadImage(str(path)), sitk.ReadImage(str(written))
    assert before.GetSize()[:3] == after.GetSize() and all(size == 1 for size in before.GetSize()[3:]), path
    last = np.array(after.GetSize()) - 1
    for index in (np.zeros(3), *np.diag(last)):
        at = [int(i) for i in index]
        wanted = before.TransformIndexToPhysicalPoint(at + [0] * (before.GetDimension() - 3))[:3]
        assert np.allclose(after.TransformIndexToPhysicalPoint(at), wanted, rtol=1e-4, atol=1e-2), (
            at,
            wanted,
        )
    return sitk.GetArrayFromImage(after)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises TookTooLong where it takes longer. In the main thread only."""

    def stop(*_: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(
    predictor: Predictor, cases: int, seed: int, folder: Path, progress: Callable[[], object] = lambda: None
) -> tuple[Counter, list[tuple[int, str]]]:
    """Counts of what became of `cases` broken files, and the cases that were neither predicted nor refused, as they
    should be, each with why. Case i is made of (seed, i) alone; the files that went wrong stay in `folder`."""
    counts, wrong = Counter(), []
    for case in range(cases):
        rng = np.random.default_rng((seed, case))
        work = folder / f"{seed}_{case}"
        (work / "out").mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = broken_file(rng, work)
        try:
            counts[check(predictor, path, TASKS[case % 2], work / "out")] += 1
        except (Exception, TookTooLong) as error:
            wrong.append((case, f"{path}: {type(error).__name__}: {error}"))
            counts["wrong"] += 1
        else:
            for entry in (path, *(work / "out").iterdir()):
                entry.unlink()
            (work / "out").rmdir(), work.rmdir()
        progress()
    return counts, wrong
