"""Every axis order, type and format is read as other libraries read it, in memory that nobody else gives back; and what is
written is where other libraries look for it."""

import gzip
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from format_matrix import (
    LPS,
    ORDERS,
    SHAPE,
    SUFFIXES,
    affine_of,
    read_itk,
    voxels_of,
    write_dicom,
    write_frames,
    write_itk,
)

from mood_submission.findings.objects import Finding, outline_objects
from mood_submission.output.dicom_seg import write_dicom_seg
from mood_submission.volumes import (
    VolumeError,
    find_volumes,
    frames,
    read_volume,
    source_at,
    survey,
    write_mask,
    write_volume,
)

SCRIPT = Path(__file__).parent / "format_matrix.py"
# memory is overwritten when it is given back, by the C library and by Python
FAILS_LOUDLY = {"MALLOC_PERTURB_": "165", "PYTHONMALLOC": "debug"}


def run_matrix(folder: Path, suffix: str, *more: str) -> list[str]:
    """What the reading process says of the volumes that the writing process made."""
    lines = ""
    for words, extra in ((("write", folder, suffix, *more), {}), (("read", folder), FAILS_LOUDLY)):
        run = subprocess.run([sys.executable, SCRIPT, *words], env=os.environ | extra, capture_output=True, text=True)
        assert run.returncode == 0, f"{run.returncode}: {run.stderr[-2000:]}"
        lines = run.stdout
    return json.loads(lines)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_axis_order_and_type_is_read_as_other_libraries_do(tmp_path, suffix):
    count = 24 if suffix == ".dcm" else 48 * 4
    assert run_matrix(tmp_path, suffix) == [f"{count} volumes read"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES[:-1])
def test_large_volumes_are_read_as_other_libraries_do(tmp_path, suffix):
    """Large pieces of memory go back to the system at once: who looks at them crashes."""
    assert run_matrix(tmp_path, suffix, "LARGE") == ["2 volumes read"]


UNITS = {"mm": 1.0, "meter": 0.001, "micron": 1000.0}  # a millimetre in each


def nifti_in(unit: str, path: Path, order: np.ndarray) -> Path:
    """A NIfTI file whose header counts in this unit."""
    scale = np.diag([UNITS[unit]] * 3 + [1.0])
    image = nib.Nifti1Image(voxels_of("int16", SHAPE, 3), scale @ affine_of(order))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def plain_metaimage(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A packed `.mha` file by its text: (I, J, K), and its affine (RAS, mm)."""
    head, content = path.read_bytes().split(b"ElementDataFile = LOCAL\n")
    fields = dict(line.split(" = ") for line in head.decode().splitlines())
    numbers = {
        name: np.array(fields[name].split(), float)
        for name in ("TransformMatrix", "ElementSpacing", "Offset", "DimSize")
    }
    affine = np.eye(4)
    affine[:3, :3] = numbers["TransformMatrix"].reshape(3, 3).T * numbers["ElementSpacing"]
    affine[:3, 3] = numbers["Offset"]
    dtype = {"MET_FLOAT": "<f4", "MET_UCHAR": "u1"}[fields["ElementType"]]
    voxels = np.frombuffer(zlib.decompress(content), dtype)
    return voxels.reshape(numbers["DimSize"].astype(int), order="F"), LPS @ affine


def plain_nrrd(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A packed `.nrrd` file by its text: (I, J, K), and its affine (RAS, mm)."""
    head, content = path.read_bytes().split(b"\n\n", 1)
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    assert fields["space"] == "left-posterior-superior" and fields["encoding"] == "gzip"
    number = r"-?[\d.]+(?:e[-+]?\d+)?"
    affine = np.eye(4)
    affine[:3, :3] = np.array(re.findall(number, fields["space directions"]), float).reshape(3, 3).T
    affine[:3, 3] = np.array(re.findall(number, fields["space origin"]), float)
    dtype = {"float": "<f4", "unsigned char": "u1"}[fields["type"]]
    shape = [int(side) for side in fields["sizes"].split()]
    return np.frombuffer(gzip.decompress(content), dtype).reshape(shape, order="F"), LPS @ affine


def in_ras(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    canonical = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    return np.asarray(canonical.dataobj), canonical.affine


READERS = {
    ".nii": read_itk,
    ".nii.gz": read_itk,
    ".mha": lambda path: in_ras(*plain_metaimage(path)),
    ".nrrd": lambda path: in_ras(*plain_nrrd(path)),
}


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("suffix", READERS)
def test_what_is_written_lies_where_another_library_looks(tmp_path, suffix, unit):
    """NIfTI is written by nibabel and read by SimpleITK, which counts in mm; the others are written by SimpleITK and read as their
    text says. All at the millimetres that SimpleITK finds in the input."""
    rng = np.random.default_rng(0)
    for number, order in enumerate(ORDERS):
        source = nifti_in(unit, tmp_path / "scan.nii", order)
        if suffix in (".mha", ".nrrd") and unit == "mm":
            source = tmp_path / f"scan{suffix}"
            write_itk(source, voxels_of("int16", SHAPE, 3), affine_of(order))
        volume, (_, affine) = read_volume(source), read_itk(source)
        scores = rng.random(volume.data.shape, dtype=np.float32)
        mask = (scores > 0.9).astype(np.uint8) * (number + 1)
        for write, array in ((write_volume, scores), (write_mask, mask)):
            write(tmp_path / f"out{suffix}", array, volume.grid)
            found, found_affine = READERS[suffix](tmp_path / f"out{suffix}")
            assert found.dtype == array.dtype and np.array_equal(found, array)
            assert np.allclose(found_affine, affine, rtol=1e-5, atol=1e-4)
            assert np.allclose(volume.spacing, np.diag(affine)[:3], rtol=1e-5)


@pytest.mark.parametrize("unit", UNITS)
def test_findings_are_told_in_millimetres(tmp_path, unit):
    """Where SimpleITK, which knows NIfTI's units, finds the mask that was written."""
    volume = read_volume(nifti_in(unit, tmp_path / "scan.nii", ORDERS[13]))
    scores = np.zeros(volume.data.shape, np.float32)
    scores[1:6, 1:6, 1:6] = 0.9
    (finding,), mask = outline_objects(scores, volume.spacing, volume.grid, None, 0.5)
    write_mask(tmp_path / "mask.nii", mask, volume.grid)
    found, affine = read_itk(tmp_path / "mask.nii")
    places = np.argwhere(found == 1)
    assert np.allclose(finding.centre_mm, (affine @ [*places.mean(0), 1])[:3], atol=0.01)
    assert finding.volume_ml == pytest.approx(len(places) * np.prod(np.diag(affine)[:3]) / 1000, abs=1e-3)


@pytest.mark.slow
def test_segmentations_lie_where_another_library_looks(tmp_path):
    """Written by highdicom, of series in every proper axis order; put together by hand from what pydicom reads."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (requirements-dev.txt)")
    pytest.importorskip("highdicom", reason="highdicom is not installed (requirements-dev.txt)")
    findings = [Finding(n, *4 * [(0, 0, 0)], 1.0, 9, 0.9, 0.5, 0.1) for n in (1, 2)]
    for number, order in enumerate(order for order in ORDERS if np.linalg.det(order) > 0):
        series, file = tmp_path / f"{number}", tmp_path / f"{number}.seg.dcm"
        _, affine = write_dicom(series, voxels_of("int16", SHAPE, number), affine_of(order))
        volume, source = read_volume(series), source_at(series)
        mask = np.zeros(volume.data.shape, np.uint8)
        mask[1:3, 1:4, 1:3], mask[-2:, -3:-1, -1:] = 1, 2
        write_dicom_seg(file, source, mask, volume.grid, findings)
        stored = pydicom.dcmread(file)
        for segment in (1, 2):
            wanted = {tuple(np.round((affine @ [*at, 1])[:3], 3)) for at in np.argwhere(mask == segment)}
            assert places_of(stored, segment) == wanted


EVEN = list(range(SHAPE[2]))


@pytest.mark.parametrize("step", [1, -1])
def test_files_of_many_frames_lie_where_each_frame_says(tmp_path, step):
    """Frames against the normal too."""
    pytest.importorskip("pydicom", reason="pydicom is not installed (requirements-dev.txt)")
    for number, order in enumerate(order for order in ORDERS if np.linalg.det(order) > 0):
        voxels, affine = voxels_of("int16", SHAPE, number), affine_of(order)
        write_frames(tmp_path / f"{number:02}" / "1.dcm", voxels, affine, EVEN[::step])
        volume = read_volume(tmp_path / f"{number:02}")
        wanted = nib.as_closest_canonical(nib.Nifti1Image(voxels[:, :, ::step] * 2.0 - 100, affine))
        assert np.array_equal(volume.data, wanted.get_fdata())
        for corner in (np.zeros(3), np.array(volume.data.shape) - 1.0):
            found = volume.grid.affine_mm @ [*volume.grid.file_index(corner), 1]
            assert np.allclose(found, wanted.affine @ [*corner, 1], atol=1e-4)


@pytest.mark.parametrize(
    "places, scales, why",
    [
        ([0, 1, 2, 5, 6, 7, 8], None, "that are no even stack"),
        ([3, 0, 5, 1, 6, 2, 4], None, "that are no even stack"),
        ([0, 0, 1, 1, 2, 2, 3], None, "that are no even stack"),
        (EVEN, [1, 2, 3, 4, 5, 6, 7], "of several scales"),
    ],
)
def test_frames_that_are_no_stack_of_one_scale_are_no_volume(tmp_path, places, scales, why):
    """SimpleITK reads each of them, as something else than it is."""
    pytest.importorskip("pydicom", reason="pydicom is not installed (requirements-dev.txt)")
    file = tmp_path / "patient" / "1.dcm"
    write_frames(file, voxels_of("int16", SHAPE, 0), affine_of(ORDERS[0]), places, scales)
    assert find_volumes(tmp_path) == []
    note = f"1 DICOM files skipped: of many frames {why}"
    assert survey(tmp_path).notes == [f"{file.parent}: {note}"]
    with pytest.raises(VolumeError, match=f"patient: expected one DICOM series, found none: {note}"):
        read_volume(file.parent)


def test_files_of_many_frames_are_not_guessed_at_without_pydicom(tmp_path, monkeypatch):
    pytest.importorskip("pydicom", reason="pydicom is not installed (requirements-dev.txt)")
    write_frames(tmp_path / "p" / "1.dcm", voxels_of("int16", SHAPE, 0), affine_of(ORDERS[0]), EVEN)
    monkeypatch.setattr(frames, "find_spec", lambda name: None)
    found = survey(tmp_path)
    assert found.volumes == [] and "not known without pydicom" in found.notes[0]


def places_of(stored, segment: int) -> set[tuple[float, ...]]:
    """Where a segment's voxels lie, RAS mm, by the standard's formula for each frame."""
    shared = stored.SharedFunctionalGroupsSequence[0]
    down, across = (float(side) for side in shared.PixelMeasuresSequence[0].PixelSpacing)
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    places = set()
    for frame, pixels in zip(stored.PerFrameFunctionalGroupsSequence, stored.pixel_array):
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber != segment:
            continue
        origin = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(pixels):
            lps = origin + cosines[0] * across * column + cosines[1] * down * row
            places.add(tuple(np.round(lps * [-1, -1, 1], 3)))
    return places
