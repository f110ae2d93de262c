"""MetaImage, NRRD and DICOM in, through the same door as NIfTI: voxels stay at their own place in the patient."""

import itertools
import locale
import os
import re
import warnings

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import mood, needs_linux, write_nifti
from nibabel import affines

from mood_submission import Predictor, load_model
from mood_submission.findings.objects import Finding
from mood_submission.output.findings_folder import FindingsFolder
from mood_submission.predictor import LabelledObjects
from mood_submission.running.run_folder import Outcome, predict_files
from mood_submission.volumes import (
    VolumeError,
    dicom,
    find_volumes,
    read_grid,
    read_volume,
    source_at,
    survey,
    write_mask,
    write_volume,
)
from mood_submission.volumes.grid import volume_of
from mood_submission.volumes.metaimage import same_locale

SHAPE = (5, 6, 4)
STRAIGHT = np.eye(3)
IMPULSE = (3, 1, 2)  # in the file's own indices
ORIENTATIONS = [
    np.array(axes) * np.array(signs)
    for axes in (np.eye(3), np.eye(3)[[1, 2, 0]], np.eye(3)[[2, 1, 0]])
    for signs in ((1, 1, 1), (-1, 1, -1))
]


def tilted(axes: np.ndarray) -> np.ndarray:
    """The axes, turned a little about all three."""
    turn = np.eye(3)
    for axis, degrees in enumerate((4, -7, 9)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        one = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        one[a, a], one[a, b], one[b, a], one[b, b] = c, -s, s, c
        turn = turn @ one
    return turn @ axes


def image(axes: np.ndarray, dtype=np.int16) -> sitk.Image:
    """An impulse of 7 in noughts."""
    voxels = np.zeros(SHAPE, dtype)
    voxels[IMPULSE] = 7
    result = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    result.SetSpacing((0.8, 1.25, 3.0))
    result.SetOrigin((-12.5, 30.25, 101.125))
    result.SetDirection(axes.ravel().tolist())
    return result


def place_of(volume, index) -> np.ndarray:
    """Where a voxel of the array lies in the patient, RAS mm."""
    return (volume.grid.affine @ [*volume.grid.file_index(np.array(index)), 1])[:3]


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr", ".MHA"])
@pytest.mark.parametrize("axes", [*ORIENTATIONS, tilted(np.eye(3))])
def test_an_impulse_stays_at_its_place_in_the_patient(tmp_path, suffix, axes):
    """Read, it lies where SimpleITK says; its score, written, lies there too."""
    stored, path = image(axes), tmp_path / f"scan{suffix}"
    sitk.WriteImage(stored, str(tmp_path / f"scan{suffix.lower()}"))
    (tmp_path / f"scan{suffix.lower()}").rename(path)
    volume = read_volume(path)
    assert volume.data.sum() == 7 and volume.data.dtype == np.float32 and volume.data.flags.f_contiguous
    found = np.unravel_index(volume.data.argmax(), volume.data.shape)
    lps = np.array(stored.TransformIndexToPhysicalPoint(IMPULSE))
    assert np.allclose(place_of(volume, found), lps * [-1, -1, 1], atol=1e-6)
    assert np.allclose(sorted(volume.spacing), [0.8, 1.25, 3.0])
    assert np.array_equal(read_grid(path).affine, volume.grid.affine)

    target = tmp_path / source_at(path).output_name.replace("scan", "scores")
    write_volume(target, (volume.data == 7).astype(np.float32), volume.grid)
    io = "MetaImageIO" if "mh" in target.suffix.lower() else "NrrdImageIO"
    back = sitk.ReadImage(str(target), imageIO=io)
    assert back.GetSize() == SHAPE and back.GetPixelID() == sitk.sitkFloat32
    assert back.GetPixel(IMPULSE) == 1 and sitk.GetArrayFromImage(back).sum() == 1
    for one, other in (
        (back.GetOrigin(), stored.GetOrigin()),
        (back.GetSpacing(), stored.GetSpacing()),
        (back.GetDirection(), stored.GetDirection()),
    ):
        assert np.allclose(one, other, atol=1e-9)
    write_mask(target, (volume.data == 7).astype(np.uint8) * 3, volume.grid)
    assert sitk.ReadImage(str(target), imageIO=io).GetPixel(IMPULSE) == 3
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_formats_agree(tmp_path, axes):
    """One scan in three formats is read as one array of one spacing."""
    for suffix in (".nii.gz", ".mha", ".nrrd"):
        sitk.WriteImage(image(axes, np.float32), str(tmp_path / f"scan{suffix}"))
    nifti, *others = (read_volume(tmp_path / f"scan{suffix}") for suffix in (".nii.gz", ".mha", ".nrrd"))
    for other in others:
        assert np.array_equal(other.data, nifti.data) and np.allclose(other.spacing, nifti.spacing)
        assert np.allclose(other.grid.affine, nifti.grid.affine, atol=1e-4)


def test_missing_voxels_are_the_lowest_of_the_others(tmp_path):
    voxels = np.full((3, 4, 5), 2.0, np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1], voxels[2, 2, 2] = np.nan, np.inf, 1.5
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "scan.mha"))
    with pytest.warns(UserWarning, match="2 NaN or infinite voxels"):
        volume = read_volume(tmp_path / "scan.mha")
    assert volume.missing == 2 and np.isfinite(volume.data).all() and (volume.data == 1.5).sum() == 3


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_volume_has_memory_of_its_own(tmp_path, suffix):
    """Float32 in RAS order, as it would be taken without a copy: the image is given back when it has been read."""
    axes = np.diag([-1.0, -1, 1])
    voxels = np.random.default_rng(0).random((40, 41, 42), dtype=np.float32)
    stored = sitk.GetImageFromArray(voxels)
    stored.SetDirection(axes.ravel().tolist())
    sitk.WriteImage(stored, str(tmp_path / f"scan{suffix}"))
    volume = read_volume(tmp_path / f"scan{suffix}")
    others = [np.full(voxels.shape, 7, np.float32) for _ in range(9)]
    assert np.array_equal(volume.data, voxels.T) and len(others) == 9
    flags = volume.data.flags
    assert flags.owndata and flags.writeable and flags.f_contiguous


def test_the_volume_of_blocks_is_a_copy_that_checks_their_shape(tmp_path):
    voxels = np.random.default_rng(0).random((4, 6, 5), dtype=np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "scan.mha"))
    source = source_at(tmp_path / "scan.mha")
    grid = read_grid(source)
    for blocks in ([voxels], [voxels[:1], voxels[1:]], list(voxels[:, None])):
        volume = volume_of(blocks, grid, source)
        assert np.array_equal(grid.to_file(volume.data), voxels.T)
        assert not np.shares_memory(volume.data, voxels)
    for blocks in ([voxels[1:]], [voxels, voxels[:1]], [voxels[:, :1]], [voxels[:, :, :1]], []):
        with pytest.raises(ValueError, match="expected"):
            volume_of(blocks, grid, source)


def broken(folder, kind: str):
    path = folder / "scan.mha"
    good = image(np.eye(3))
    if kind == "colour":
        sitk.WriteImage(sitk.Compose(good, good, good), str(path))
    elif kind == "complex":
        sitk.WriteImage(
            sitk.RealAndImaginaryToComplex(*(sitk.Cast(good, sitk.sitkFloat32),) * 2),
            str(folder / "scan.nrrd"),
        )
        return folder / "scan.nrrd"
    elif kind == "flat":
        sitk.WriteImage(good[:, :, 0], str(path))
    elif kind == "several in time":
        sitk.WriteImage(sitk.JoinSeries([good, good]), str(path))
    elif kind == "short":
        sitk.WriteImage(good, str(path))
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no image at all\n" * 9)
    elif kind == "huge":
        sitk.WriteImage(good, str(path))
        path.write_bytes(path.read_bytes().replace(b"DimSize = 5 6 4", b"DimSize = 50000 60000 40000"))
    elif kind == "folder":
        path.mkdir()
    elif kind == "without its voxels":
        sitk.WriteImage(good, str(folder / "scan.mhd"))
        next(folder.glob("*.*raw")).unlink()
        return folder / "scan.mhd"
    return path


@pytest.mark.parametrize(
    "kind",
    "colour complex flat several_in_time short empty text huge folder missing without_its_voxels".split(),
)
def test_what_is_no_volume_is_one_line(tmp_path, kind):
    path = broken(tmp_path, kind.replace("_", " "))
    with pytest.raises(VolumeError) as error:
        read_volume(path)
    assert str(error.value).startswith(f"{path}: expected ") and "found" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "was, becomes",
    [
        (b"NDims = 3", b"NDims = -32768"),
        (b"NDims = 3", b"NDims = 2.14748e+09"),
        (b"NDims = 3", b"NDims = 11"),
        (b"NDims = 3", b"NDims ="),
        (b"BinaryData = True", b"BinaryData = \x00\x11\x03" + bytes(range(256))),
        (b"TransformMatrix = 1", b"TransformMatrix = True"),
        (b"DimSize = 5", b"DimSize = five"),
        (b"TransformMatrix = 1", b"TransformMatrix = 1e38"),
        (b"TransformMatrix = 1 0 0 0 1", b"TransformMatrix = 1 0 1e38 0 1"),
        (b"ElementDataFile = LOCAL", b"ElementDataFile = a%s%n%s.raw"),
        (b"ElementDataFile = LOCAL", b"ElementDataFile = \x1bLOCAL"),
    ],
)
def test_headers_that_libraries_crash_at_are_one_line(tmp_path, was, becomes):
    path = tmp_path / "scan.mha"
    sitk.WriteImage(image(STRAIGHT), str(path))
    assert was in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(was, becomes))
    with pytest.raises(VolumeError, match="scan.mha: expected .*, found"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_sizes_in_other_units_are_one_line(tmp_path, suffix):
    """SimpleITK takes every number for mm: a mouse would have the size of a house."""
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image(STRAIGHT), str(path))
    whole = path.read_bytes()
    for unit in ("mm", "?", "um", "µm", "cm", "m", "Micrometer"):
        if suffix == ".mha":
            before, line = b"ElementSpacing", f"DistanceUnits = {unit}\n"
        else:
            before, line = b"space origin", f'space units: "mm" "{unit}" "mm"\n'
        path.write_bytes(whole.replace(before, line.encode() + before, 1))
        for read in (read_volume, read_grid):
            if unit in ("mm", "?"):
                read(path)
                continue
            with pytest.raises(VolumeError, match="expected sizes in mm, found") as error:
                read(path)
            assert str(path) in str(error.value) and str(error.value).endswith(unit)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_damaged_packed_voxels_are_one_line(tmp_path, suffix):
    """Of those SimpleITK makes a volume with the voxels that the memory happened to hold."""
    path = tmp_path / f"scan{suffix}"
    voxels = np.random.default_rng(0).integers(0, 99, (9, 8, 7)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), True)
    packed = path if suffix == ".mha" else tmp_path / "scan.zraw"
    assert np.array_equal(read_volume(path).data, voxels.T[::-1, ::-1])
    whole = packed.read_bytes()
    for damaged in (
        whole[:-300] + bytes([whole[-300] ^ 255]) + whole[-299:],
        whole[:-1] + bytes([whole[-1] ^ 255]),
    ):
        packed.write_bytes(damaged)
        with pytest.raises(VolumeError, match="found packed voxels that are damaged") as error:
            read_volume(path)
        assert str(error.value).startswith(f"{path}: ")
    packed.write_bytes(whole[:-9])
    with pytest.raises(VolumeError):
        read_volume(path)
    packed.write_bytes(whole)
    for size in ("7 8 8", "7 8 10"):
        if suffix == ".mha":
            packed.write_bytes(whole.replace(b"DimSize = 7 8 9", f"DimSize = {size}".encode()))
        else:
            path.write_text(re.sub("DimSize = .*", f"DimSize = {size}", path.read_text()))
        with pytest.raises(VolumeError):
            read_volume(path)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_files_with_bytes_changed_are_volumes_or_errors(tmp_path, suffix):
    """Never a crash, never numbers that are none."""
    path, rng, usual = tmp_path / f"scan{suffix}", np.random.default_rng(0), locale.setlocale(locale.LC_ALL)
    sitk.WriteImage(image(np.eye(3)), str(path))
    whole, outcomes = path.read_bytes(), set()
    for _ in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        path.write_bytes(bytes(damaged[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else damaged))
        try:
            volume = read_volume(path)
            assert volume.data.ndim == 3 and np.isfinite(volume.data).all() and min(volume.spacing) > 0
            outcomes.add("volume")
        except VolumeError as error:
            assert "\n" not in str(error)
            outcomes.add("error")
        assert locale.setlocale(locale.LC_ALL) == usual
    assert outcomes == {"volume", "error"}


# DICOM


@same_locale()
def write_series(
    folder,
    axes=STRAIGHT,
    count=4,
    uid="1.2.3",
    number=1,
    slope=2.0,
    intercept=-1000.0,
    tilt=0.0,
    leave_out=(),
    image_type="ORIGINAL\\PRIMARY\\AXIAL",
    sop_class="1.2.840.10008.5.1.4.1.1.2",
    size=(5, 6),
    names=lambda i: f"IM{(i * 7) % 10:04d}",
):
    """A CT of `count` slices, 2.5 mm apart, of 100 * slice + 10 * row + 2 * column HU; SimpleITK stores them as the slope and
    the intercept say."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i in range(count):
        if i in leave_out:
            continue
        rows, columns = np.mgrid[: size[1], : size[0]]
        one = sitk.GetImageFromArray((100 * i + 10 * rows + 2 * columns).astype(np.int16)[None])
        origin = np.array([-10.0, 20, 30]) + i * 2.5 * (axes[:, 2] + np.tan(np.radians(tilt)) * axes[:, 1])
        one.SetSpacing((0.75, 1.5, 2.5))
        one.SetOrigin(origin.tolist())
        one.SetDirection(axes.ravel().tolist())
        for tag, value in {
            "0008|0060": "CT",
            "0008|0008": image_type,
            "0008|0016": sop_class,
            "0008|0018": f"{uid}.{i + 1}",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0011": str(number),
            "0020|0013": str(count - i),
            "0020|0032": "\\".join(f"{x:.9f}" for x in origin),
            "0020|0037": "\\".join(f"{x:.9f}" for x in axes[:, :2].T.ravel()),
            "0028|1052": str(intercept),
            "0028|1053": str(slope),
        }.items():
            one.SetMetaData(tag, value)
        path = folder / f"{names(i)}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(one)
    return folder


@same_locale()
def write_slices(folder, scan):
    """Each slice of an image as a file of one series."""
    folder.mkdir()
    for i in range(scan.GetDepth()):
        one = scan[:, :, i : i + 1]
        for tag, value in {
            "0008|0060": "CT",
            "0020|000e": "1.2.3",
            "0020|0032": "\\".join(f"{x:.6f}" for x in one.GetOrigin()),
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            one.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{i}.dcm"))
        writer.Execute(one)


@pytest.mark.parametrize("axes", [np.eye(3), ORIENTATIONS[2], ORIENTATIONS[4], tilted(np.eye(3))])
def test_a_series_is_a_volume_in_hounsfield_units(tmp_path, axes):
    """Sorted by place, whatever the files are called; as SimpleITK's own series reader puts it together."""
    folder = write_series(tmp_path / "patient", axes)
    (source,) = find_volumes(tmp_path)
    assert source.path == folder and source == source_at(folder) and survey(tmp_path).others == []
    assert source.kind == "dicom" and source.name == "patient" and source.output_name == "patient.nii.gz"
    volume = read_volume(folder)
    with same_locale():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        expected = reader.Execute()
    for index in itertools.product(range(5), range(6), range(4)):
        ras = np.array(expected.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        at = np.linalg.solve(volume.grid.affine, [*ras, 1])[:3]
        at = volume.grid.ras_index(at.round().astype(int)).astype(int)
        assert volume.data[tuple(at)] == expected.GetPixel(index)
    assert volume.data.min() == 0 and volume.data.max() == 358
    stored = np.frombuffer(next(folder.iterdir()).read_bytes()[-60:], np.int16)
    assert stored.min() >= 500  # (0 + 1000) / 2: rescaled when it was read
    assert np.allclose(sorted(volume.spacing), [0.75, 1.5, 2.5])


def test_reading_leaves_the_locale_as_it_is(tmp_path):
    """GDCM and NRRD's reader set it; Python would take text files for ASCII from then on."""
    usual = locale.setlocale(locale.LC_ALL)
    read_volume(write_series(tmp_path / "patient"))
    assert locale.setlocale(locale.LC_ALL) == usual


def test_mixed_series_are_told_apart_and_others_skipped_with_a_note(tmp_path):
    folder = tmp_path / "study"
    write_series(folder / "a", uid="1.2.3", number=2)
    write_series(folder / "b", uid="1.2.4", number=3, count=3, names=lambda i: f"B{i}")
    write_series(folder / "a", uid="1.2.5", count=3, image_type="ORIGINAL\\PRIMARY\\LOCALIZER", names=lambda i: f"L{i}")
    write_series(folder, uid="1.2.6", count=1, sop_class="1.2.840.10008.5.1.4.1.1.7", names=lambda i: "shot")
    (folder / "README").write_text("nothing")
    found = survey(tmp_path)
    assert [source.name for source in found.volumes] == ["study_002", "study_003"]
    assert [read_volume(source).data.shape for source in found.volumes] == [(5, 6, 4), (5, 6, 3)]
    assert found.notes == [
        f"{folder}: 3 DICOM files skipped: localisers",
        f"{folder}: 1 DICOM files skipped: secondary captures",
    ]


def test_files_of_a_series_may_lie_in_the_folder_itself(tmp_path):
    folder = write_series(tmp_path / "input")
    write_nifti(folder / "brain.nii.gz", np.zeros((3, 3, 3), np.float32))
    assert [source.path for source in find_volumes(folder)] == [folder, folder / "brain.nii.gz"]
    assert read_volume(folder).data.shape == (5, 6, 4)


@needs_linux
def test_paths_that_are_no_utf8_end_no_run(tmp_path):
    """SimpleITK would end the process: such a file is refused in one line, such DICOM files are skipped with a note."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    write_series(tmp_path / "series", count=3).rename(folder / "series")
    for suffix in (".mha", ".nrrd"):
        sitk.WriteImage(image(STRAIGHT), str(tmp_path / f"scan{suffix}"))
        grid = read_grid(tmp_path / f"scan{suffix}")
        odd = (tmp_path / f"scan{suffix}").rename(folder / f"scan{suffix}")
        for read in (read_volume, read_grid):
            with pytest.raises(VolumeError, match="found OSError: .* no UTF-8"):
                read(odd)
        with pytest.raises(OSError, match="no UTF-8"):
            write_volume(odd, np.zeros(grid.ras_shape, np.float32), grid)
    found = survey(folder)
    assert [source.path.name for source in found.volumes] == ["scan.mha", "scan.nrrd"]
    assert [note.split(": ", 1)[1] for note in found.notes] == ["3 DICOM files skipped: of a path that is no UTF-8"]


@pytest.mark.parametrize(
    "how, found",
    [
        ({"leave_out": (2,)}, "slices are missing"),
        ({"tilt": 12.0}, "gantry tilt of 12.0 degrees"),
    ],
)
def test_what_is_no_straight_stack_is_one_line(tmp_path, how, found):
    folder = write_series(tmp_path / "patient", count=5, **how)
    with pytest.raises(VolumeError, match=found) as error:
        read_volume(folder)
    assert str(error.value).startswith(f"{folder}: expected slices") and "\n" not in str(error.value)


def test_slices_there_twice_or_of_another_size_are_one_line(tmp_path):
    write_series(tmp_path / "twice")
    write_series(tmp_path / "twice", names=lambda i: f"again{i}")
    write_series(tmp_path / "sizes", count=3)
    write_series(tmp_path / "sizes", count=4, leave_out=(0, 1, 2), size=(5, 7), names=lambda i: "other")
    with pytest.raises(VolumeError, match="each slice once, found .* at one place"):
        read_volume(tmp_path / "twice")
    with pytest.raises(VolumeError, match="slices of one size, found"):
        read_volume(tmp_path / "sizes")


def test_a_broken_file_of_a_series_is_a_missing_slice(tmp_path):
    folder = write_series(tmp_path / "patient", count=6)
    damaged = sorted(folder.iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert survey(tmp_path).notes == [f"{folder}: 1 DICOM files skipped: unreadable, or no images"]
    with pytest.raises(VolumeError, match="slices are missing|slices 2.5 mm apart"):
        read_volume(folder)


def test_a_folder_without_dicom_is_no_volume(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1")
    assert find_volumes(tmp_path) == [] and survey(tmp_path).others == [tmp_path / "labels"]
    for path, found in (("labels", "a folder without such a series"), ("nothing", "no such file")):
        with pytest.raises(VolumeError, match=f"expected a volume or a DICOM series, found {found}"):
            read_volume(tmp_path / path)


def odd_folders(folder):
    """DICOM in folders whose names could be taken for something else, two of them with two series of one number. Returns the names
    of the volumes."""
    for name in ("sub.01", "study_1.2.4"):
        write_series(folder / name / "a", uid="1.2.3")
        write_series(folder / name / "b", uid="1.2.5", count=3)
    write_series(folder / "x.nii")
    write_series(folder / "y.mha" / "deep")
    return ["study_1.2.4_001", "study_1.2.4_1.2.5", "sub.01_001", "sub.01_1.2.5", "x.nii", "y.mha"]


def test_series_are_read_whatever_their_folders_are_called(tmp_path):
    names = odd_folders(tmp_path)
    found = survey(tmp_path)
    assert [source.name for source in found.volumes] == names and found.others == []
    assert {source.kind for source in found.volumes} == {"dicom"}
    for source in found.volumes:
        shape = (5, 6, len(source.files))
        assert read_volume(source).data.shape == read_grid(source).shape == shape
        assert source_at(source.path) == source and read_volume(source.path).data.shape == shape
        assert source.output_name == f"{source.name}.nii.gz" == source.seed_name
    with pytest.raises(VolumeError, match="one DICOM series, found 2 series: sub.01_001, sub.01_1.2.5"):
        read_volume(tmp_path / "sub.01")


def test_a_folder_that_is_given_by_dots_is_called_by_its_own_name(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "patient")
    (folder / "empty").mkdir()
    for inside, given in ((folder, "."), (folder / "empty", ".."), (tmp_path, "patient/empty/..")):
        monkeypatch.chdir(inside)
        (found,) = find_volumes(given)
        assert found.output_name == "patient.nii.gz" and found == source_at(given)
        assert read_volume(given).data.shape == (5, 6, 4)
    write_series(folder, uid="1.2.5", names=lambda i: f"other_{i}")
    assert {one.name for one in find_volumes("patient/empty/..")} == {"patient_001", "patient_1.2.5"}


@pytest.mark.slow
def test_series_are_predicted_whatever_their_folders_are_called(tmp_path, tiny_weights):
    names, out = odd_folders(tmp_path / "in"), tmp_path / "out"
    words = (
        "predict", "--region", "abdom", "--task", "pixel", "--weights", tiny_weights["abdom"],
        "-i", tmp_path / "in", "-o", out, "--restorations", 1, "--slices", 2, "--device", "cpu", "--resume",
    )  # fmt: skip
    for part in (1, 2):
        done = mood(*words, "--shard", f"{part}/2")
        assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in out.iterdir()) == [f"{name}.nii.gz" for name in names]
    done = mood(*words)
    assert done.returncode == 0 and "6 of 6 volumes had their prediction already" in done.stderr
    for source in find_volumes(tmp_path / "in"):
        written = nib.load(out / source.output_name)
        assert np.allclose(written.affine, read_grid(source).affine, atol=1e-4)


def test_paths_that_lead_to_no_volume_are_an_outcome(tiny_weights, blobs, tmp_path):
    """What is not there, and a folder of two series, given as paths by who calls this from Python."""
    series = tmp_path / "two"
    for uid in ("1.2.3", "1.2.5"):
        write_series(series / uid, uid=uid)
    paths = [tmp_path / "nothing", blobs / "case_0.nii.gz", series, tmp_path / ("x" * 300)]
    predictor = Predictor(load_model(tiny_weights["brain"], device="cpu"), 2, 1)
    (out := tmp_path / "out").mkdir()
    told: list[Outcome] = []
    outcomes = predict_files(predictor, paths, "sample", out, told.append)
    assert told == outcomes and [one.file for one in outcomes] == paths
    assert [one.status for one in outcomes] == ["failed", "predicted", "failed", "failed"]
    assert "expected a volume or a DICOM series, found no such file" in outcomes[0].message
    assert "expected one DICOM series, found 2 series" in outcomes[2].message
    assert [file.name for file in out.iterdir()] == ["case_0.nii.gz.txt"]


@pytest.mark.slow
def test_names_too_long_for_a_segmentation_are_told_before_anything_is_computed(tmp_path, measured):
    """A segmentation's name is a byte longer than the prediction's; of what is no series none is written."""
    pytest.importorskip("highdicom", reason="highdicom is not installed (requirements-dev.txt)")
    source, out, name = tmp_path / "in", tmp_path / "out", "a" * 248
    write_series(source / name, size=(24, 28))
    write_nifti(source / f"{'b' * 248}.nii.gz", np.arange(24 * 28 * 4.0).reshape(24, 28, 4), np.eye(4))
    words = (
        "predict --region brain --task pixel --slices 2 --restorations 1 --device cpu --dicom-seg -i",
        source,
    )
    done = mood(*words, "-o", out, "--weights", measured, "--findings", tmp_path / "found")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith(str(source / name))]
    assert len(told) == 1 and told[0].endswith("expected a prediction's name of at most 255 bytes, found 256")
    assert [file.name for file in out.iterdir()] == [f"{'b' * 248}.nii.gz"]


def test_each_header_is_read_once(tmp_path, monkeypatch):
    """Of six series in one folder, each of many files: once when they are found, and never again."""
    headers = []
    read = dicom._header
    monkeypatch.setattr(dicom, "_header", lambda file: headers.append(file) or read(file))
    for number in range(6):
        write_series(tmp_path / "study", count=4, uid=f"1.2.{number}", number=number, names=lambda i: f"{number}_{i}")
    sources = find_volumes(tmp_path)
    for source in sources:
        read_volume(source), read_grid(source)
    assert len(sources) == 6 and len(headers) == len(set(headers)) == 24


def test_the_files_of_a_series_are_in_the_order_of_its_slices(tmp_path):
    (source,) = find_volumes(write_series(tmp_path / "patient").parent)
    with same_locale():
        places = [sitk.ReadImage(str(file)).GetOrigin()[2] for file in source.files]
    assert places == [30, 32.5, 35, 37.5] and [one.file for one in source.slices] == list(source.files)


def changed(folder, **values):
    """A series with other values in its headers; None takes one away."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (requirements-dev.txt)")
    for file in write_series(folder).iterdir():
        header = pydicom.dcmread(file)
        for name, value in values.items():
            if value is not None:
                setattr(header, name, value)
            elif name in header:
                delattr(header, name)
        header.save_as(file)
    return folder


@pytest.mark.parametrize(
    "name, value",
    [("SliceThickness", None), ("SliceThickness", 0), ("SliceThickness", -2.5), ("SliceThickness", 9)]
    + [("SpacingBetweenSlices", None), ("SpacingBetweenSlices", -2.5), ("SpacingBetweenSlices", 9)],
)
def test_how_far_slices_are_apart_is_told_by_their_places(tmp_path, name, value):
    folder = changed(tmp_path / "patient", **{name: value})
    assert np.allclose(sorted(read_volume(folder).spacing), [0.75, 1.5, 2.5])


def test_slices_that_itk_refuses_are_an_error_of_their_volume(tmp_path):
    """No series that is silently missing."""
    folder = changed(tmp_path / "patient", SpacingBetweenSlices=0)
    (source,) = find_volumes(tmp_path)
    assert source.path == folder
    with pytest.raises(VolumeError, match="patient: expected readable DICOM files, found .*Zero-valued spacing"):
        read_volume(source)


@pytest.mark.parametrize("value", [None, [0, 0], []])
def test_pixels_without_a_size_are_told_of(tmp_path, value):
    folder = changed(tmp_path / "patient", PixelSpacing=value)
    with pytest.warns(UserWarning, match="patient: no size of the pixels in the headers; taken for 1 mm"):
        volume = read_volume(folder)
    assert np.allclose(sorted(volume.spacing), [1, 1, 2.5])


def test_segmentations_and_odd_numbers_of_series_are_no_trouble(tmp_path):
    """A segmentation such as this program writes is no volume; and not all that looks like a number is one."""
    write_series(tmp_path / "study", uid="1.2.3")
    write_series(tmp_path / "study", uid="1.2.4", sop_class="1.2.840.10008.5.1.4.1.1.66.4", names=lambda i: f"S{i}")
    found = survey(tmp_path)
    assert [source.name for source in found.volumes] == ["study"]
    assert found.notes == [f"{tmp_path / 'study'}: 4 DICOM files skipped: segmentations"]
    names = dicom._names(tmp_path, {"1.2.3": "\u00b2", "../1\0/2": "-1", "1.2.5": "7"})
    assert [name.name for name in names.values()] == [f"{tmp_path.name}_{end}" for end in (".._1__2", "1.2.3", "007")]


def test_two_volumes_of_one_prediction_are_an_error(tmp_path):
    sitk.WriteImage(image(np.eye(3)), str(tmp_path / "scan.mha"))
    sitk.WriteImage(image(np.eye(3)), str(tmp_path / "scan.mhd"))
    with pytest.raises(VolumeError, match="each prediction's name once, found scan.mha for scan.mha and scan.mhd"):
        find_volumes(tmp_path)


# from end to end


def test_every_format_is_scored_alike(tmp_path, tiny_weights):
    """One brain as NIfTI, MetaImage, NRRD and DICOM: the same bits, each on its own grid, named after the input."""
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[-1:1:16j, -1:1:20j, -1:1:18j]
    voxels = np.where(x**2 + y**2 + z**2 < 0.8, 200 + 30 * rng.standard_normal(x.shape), 0).clip(0)
    scan = sitk.GetImageFromArray(voxels.round().astype(np.int16))
    scan.SetSpacing((0.8, 0.8, 2.5))
    names = {
        "scan.nii.gz": "scan.nii.gz",
        "scan.mha": "scan.mha",
        "scan.nhdr": "scan.nrrd",
        "scan": "scan.nii.gz",
    }
    scores = {}
    for given, written in names.items():
        folder, out = tmp_path / "in" / f"as_{given}", tmp_path / "out" / f"as_{given}"
        folder.mkdir(parents=True)
        if given == "scan":
            write_slices(folder / given, scan)
        else:
            sitk.WriteImage(scan, str(folder / given))
        words = (
            "predict", "--region", "brain", "--task", "both", "--weights", tiny_weights["brain"],
            "-i", folder, "-o", out, "--slices", 3, "--restorations", 2, "--device", "cpu",
        )  # fmt: skip
        done = mood(*words)
        assert done.returncode == 0, done.stderr
        scores[given] = read_volume(out / written), (out / f"{written}.txt").read_text()
        again = mood(*words, "--resume")
        assert again.returncode == 0 and "1 of 1 volumes had their prediction already" in again.stderr
    pixel, sample = scores.pop("scan.nii.gz")
    assert pixel.data.any()
    for other, text in scores.values():
        assert np.array_equal(other.data, pixel.data) and text == sample
        assert np.allclose(other.grid.affine, pixel.grid.affine, atol=1e-4)


@pytest.mark.parametrize("axes", [STRAIGHT, ORIENTATIONS[2], tilted(np.eye(3))])
def test_findings_in_a_series_are_a_dicom_segmentation_too(tmp_path, axes):
    """highdicom's own reader finds each finding's voxels at their places in the patient; a series without findings has none."""
    highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed (requirements-dev.txt)")
    series = write_series(tmp_path / "in" / "patient", axes, count=5, size=(7, 9))
    volume = read_volume(series)
    mask = np.zeros(volume.data.shape, np.uint8)
    mask[1:3, 1:4, 1:3], mask[-2:, -3:-1, -1:] = 1, 2
    grid = volume.grid
    findings = [Finding(n, *4 * [(0, 0, 0)], 1.0, 9, highest, 0.5, 0.1) for n, highest in ((1, 0.9), (2, 0.6))]
    folder, source = FindingsFolder(tmp_path / "found", dicom_seg=True), source_at(series)
    with pytest.warns(UserWarning, match="patient: no DICOM segmentation written: Source images have no Frame"):
        folder.add(source, LabelledObjects(findings, mask), grid)
    for file in series.iterdir():  # which scanners write, and SimpleITK does not
        one = highdicom.imread(file)
        one.FrameOfReferenceUID = "1.2.4"
        one.save_as(file)
    folder.add(source, LabelledObjects(findings, mask), grid)
    stored = highdicom.seg.segread(tmp_path / "found" / "patient.seg.dcm")
    assert stored.number_of_segments == 2 and list(stored.segment_numbers) == [1, 2]
    labels = [stored.get_segment_description(n).segment_label for n in (1, 2)]
    assert labels == ["Finding 1, score 0.90", "Finding 2, score 0.60"]
    ours = {
        n: {tuple(np.round(p, 3)) for p in affines.apply_affine(grid.affine, voxels(grid, mask == n))} for n in (1, 2)
    }
    whole = stored.get_volume(combine_segments=True)
    lps = whole.affine
    for number in (1, 2):
        places = affines.apply_affine(lps, np.argwhere(whole.array == number)) * [-1, -1, 1]
        assert {tuple(np.round(p, 3)) for p in places} == ours[number]
    folder.add(source, LabelledObjects([], np.zeros_like(mask)), grid)
    assert not (tmp_path / "found" / "patient.seg.dcm").exists()


@pytest.mark.parametrize("characters", [None, ["", "ISO 2022 IR 87"]])
def test_names_of_one_word_and_of_japanese_characters_get_into_the_segmentation_and_into_no_warning(
    tmp_path, characters
):
    highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed (requirements-dev.txt)")
    series = write_series(tmp_path / "in" / "patient", count=5, size=(7, 9))
    for file in series.iterdir():
        one = highdicom.imread(file)
        one.FrameOfReferenceUID, one.PatientName = (
            "1.2.4",
            "ANON0815" if characters is None else "Yamada^Tarou=山田^太郎",
        )
        if characters:
            one.SpecificCharacterSet = characters
        one.save_as(file)
    volume = read_volume(series)
    mask = np.zeros(volume.data.shape, np.uint8)
    mask[1:3, 1:4, 1:3] = 1
    finding = Finding(1, *4 * [(0, 0, 0)], 1.0, 9, 0.9, 0.5, 0.1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        FindingsFolder(tmp_path / "found", dicom_seg=True).add(
            source_at(series), LabelledObjects([finding], mask), volume.grid
        )
    assert not [str(one.message) for one in told if issubclass(one.category, UserWarning)]
    stored = highdicom.seg.segread(tmp_path / "found" / "patient.seg.dcm")
    stored.decode()
    assert str(stored.PatientName) == ("ANON0815" if characters is None else "Yamada^Tarou=山田^太郎")


def test_what_is_not_there_is_told_without_a_look_at_the_folder(tmp_path, monkeypatch):
    """The folder may be a whole disk. Only the name of one of its series is looked for in its files."""
    folder = tmp_path / "patient"
    folder.mkdir()
    monkeypatch.setattr("mood_submission.volumes.discover.scan", None)
    with pytest.raises(VolumeError, match="brian: expected a volume or a DICOM series, found no such file"):
        source_at(folder / "brian")
    with pytest.raises(VolumeError, match="no such file"):
        source_at("/nope")
    monkeypatch.undo()
    (folder / "a.txt").touch()
    with pytest.raises(
        VolumeError,
        match="patient: expected a volume or a DICOM series, found a folder without such a series; name a file in it",
    ):
        source_at(folder)


def voxels(grid, inside) -> np.ndarray:
    """The file's own indices of the voxels of a mask in RAS order, (N, 3)."""
    return np.argwhere(grid.to_file(inside))


def test_a_dicom_series_is_scored_as_nifti(tmp_path, tiny_weights):
    folder = write_series(tmp_path / "in" / "patient", count=6, size=(12, 14))
    done = mood(
        "predict", "--region", "abdom", "--task", "pixel", "--weights", tiny_weights["abdom"],
        "-i", tmp_path / "in", "-o", tmp_path / "out", "--restorations", 1, "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = nib.load(tmp_path / "out" / "patient.nii.gz")
    assert written.shape == (12, 14, 6) and np.allclose(written.affine, read_grid(folder).affine, atol=1e-4)
