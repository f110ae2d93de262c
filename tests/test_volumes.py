"""NIfTI in and out: every orientation, data type and scaling, and what a reader does with bad files."""

import gzip
import itertools
import os
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import needs_linux

from mood_submission.volumes import (
    Grid,
    VolumeError,
    find_volumes,
    named_volumes,
    read_volume,
    survey,
    write_volume,
)

ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(pairs, flips))
    for pairs in itertools.permutations(("LR", "PA", "IS"))
    for flips in itertools.product((0, 1), repeat=3)
]
DTYPES = ("u1", "i1", "<i2", ">i2", "<u2", "<i4", ">i4", "<i8", "<f4", ">f4", "<f8", ">f8")
SCALINGS = ((1.0, 0.0), (1 / 255, 0.0), (2.0, -1024.0))


def oriented_affine(codes: str, zooms=(1.0, 1.0, 1.0)) -> np.ndarray:
    """(4, 4) affine whose i-th file axis points to codes[i] with voxel size zooms[i]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (code, zoom) in enumerate(zip(codes, zooms)):
        world = next(index for index, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[world, axis] = zoom if code in "RAS" else -zoom
    affine[:3, 3] = (-11.5, 7.25, 3.0)
    return affine


def save(path: Path, data: np.ndarray, affine: np.ndarray, slope=1.0, inter=0.0) -> Path:
    """Store the raw numbers as they are, in their own byte order, with this slope and intercept."""
    header = nib.Nifti1Header(endianness=">" if data.dtype.byteorder == ">" else "<")
    header.set_data_dtype(data.dtype)
    image = nib.Nifti1Image(data, affine, header)
    image.header.set_slope_inter(slope, inter)
    file_map = image.make_file_map()
    file_map["image"].filename = str(path)
    image.header.set_data_offset(352)
    with nib.openers.ImageOpener(str(path), "wb") as file:
        image.header.write_to(file)  # 348 bytes and the 4 of the extension flag
        assert file.tell() == 352
        file.write(data.astype(image.header.get_data_dtype()).tobytes(order="F"))
    return path


def simple(path: Path, shape=(4, 5, 6), dtype=np.float32, **fields) -> Path:
    """A small scan with some header fields set."""
    data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    image = nib.Nifti1Image(data, np.eye(4))
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def obvious_ras(path: Path) -> np.ndarray:
    """What nibabel's own reorientation makes of the file, in float64."""
    return nib.as_closest_canonical(nib.load(path)).get_fdata()


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_round_trip_of_every_orientation_type_and_scaling(tmp_path, codes):
    rng = np.random.default_rng(0)
    affine = oriented_affine(codes, (0.5, 1.25, 3.0))
    raw = rng.integers(0, 120, (4, 6, 5))
    number = ORIENTATIONS.index(codes)
    for dtype, (slope, inter) in itertools.product(DTYPES, SCALINGS):
        path = save(tmp_path / "scan.nii", raw.astype(dtype), affine, slope, inter)
        volume = read_volume(path)
        assert volume.data.dtype == np.float32 and volume.data.flags.f_contiguous
        np.testing.assert_array_equal(volume.data, obvious_ras(path).astype(np.float32))
        np.testing.assert_allclose(volume.grid.to_file(volume.data), raw * slope + inter, rtol=1e-6)
        assert volume.data.shape == volume.grid.ras_shape
        assert volume.spacing == pytest.approx(nib.as_closest_canonical(nib.load(path)).header.get_zooms())
    suffix = ".nii.gz" if number % 2 else ".nii"
    scores = rng.random(volume.data.shape, dtype=np.float32)
    write_volume(tmp_path / f"out{suffix}", scores, volume.grid)
    written = nib.load(tmp_path / f"out{suffix}")
    assert written.shape == raw.shape and written.get_data_dtype().newbyteorder("=") == np.float32
    np.testing.assert_array_equal(written.affine, nib.load(path).affine)
    np.testing.assert_array_equal(obvious_ras(tmp_path / f"out{suffix}"), scores)
    np.testing.assert_array_equal(read_volume(tmp_path / f"out{suffix}").data, scores)


def test_a_known_voxel_of_a_known_orientation(tmp_path):
    """By hand, not by nibabel: LPS, so the file's first voxel is the rightmost, most anterior one at the bottom."""
    data = np.zeros((3, 4, 5), dtype=np.float32)
    data[0, 0, 0] = 1
    data[0, 1, 4] = 2
    volume = read_volume(save(tmp_path / "lps.nii", data, np.diag([-1.0, -1.0, 1.0, 1.0])))
    assert volume.data[2, 3, 0] == 1 and volume.data[2, 2, 4] == 2
    data = np.zeros((3, 4, 5), dtype=np.float32)  # file axes: downward, to the right, forward
    data[1, 2, 3] = 1
    volume = read_volume(save(tmp_path / "ira.nii", data, oriented_affine("IRA", (3, 1, 2))))
    assert volume.data.shape == (4, 5, 3) and volume.data[2, 3, 1] == 1 and volume.spacing == (1, 2, 3)


def test_oblique_scans_keep_their_affine(tmp_path):
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = [[-np.cos(angle), np.sin(angle)], [-np.sin(angle), -np.cos(angle)]]
    path = save(tmp_path / "scan.nii.gz", np.random.default_rng(0).random((5, 6, 7), dtype=np.float32), affine)
    volume = read_volume(path)
    assert volume.spacing == pytest.approx((1, 1, 1)) and volume.grid.flipped == (True, True, False)
    write_volume(tmp_path / "out.nii.gz", np.clip(volume.data, 0, 1), volume.grid)
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").affine, nib.load(path).affine)
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").get_fdata(), nib.load(path).get_fdata())


@pytest.mark.parametrize("sform,qform", [(1, 0), (0, 1), (2, 4), (0, 0)])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_codes_units_and_affines_are_kept(tmp_path, sform, qform, image_class):
    image = image_class(np.zeros((3, 4, 5), dtype=np.int16), None)
    image.set_sform(oriented_affine("PSL", (1, 2, 3)), sform)
    image.set_qform(oriented_affine("PSL", (1, 2, 3)), qform)
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"] = 2000
    nib.save(image, tmp_path / "scan.nii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = read_volume(tmp_path / "scan.nii")
    write_volume(tmp_path / "out.nii", volume.data, volume.grid)
    before, after = nib.load(tmp_path / "scan.nii").header, nib.load(tmp_path / "out.nii").header
    placement = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x")
    for field in (*placement, "dim", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(before[field], after[field], err_msg=field)
    assert type(before) is type(after) and after["cal_max"] == 0
    assert nib.load(tmp_path / "out.nii").dataobj.slope == 1 and nib.load(tmp_path / "out.nii").dataobj.inter == 0


def test_units_other_than_millimetre(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), dtype=np.uint8), np.diag([0.001, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.spacing == pytest.approx((1, 2, 3))
    assert np.allclose(volume.grid.affine_mm, np.diag([1, 2, 3, 1]))
    write_volume(tmp_path / "out.nii", volume.data, volume.grid)
    written = nib.load(tmp_path / "out.nii")  # in the file's own unit
    assert np.allclose(written.affine, image.affine) and written.header.get_xyzt_units()[0] == "meter"


def test_a_place_that_is_no_number_is_told_of(tmp_path):
    path = simple(tmp_path / "scan.nii")
    content = bytearray(path.read_bytes())
    content[252:256] = np.array([0, 1], "<i2").tobytes()  # a sform alone
    content[280:296] = np.array([2, 0, 0, np.nan], "<f4").tobytes()
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="scan.nii: no usable place in the header"):
        volume = read_volume(path)
    assert np.array_equal(volume.grid.affine_mm, np.diag([2.0, 1, 1, 1]))


@pytest.mark.parametrize("slope, inter", [(0, 5), (np.nan, np.nan), (np.nan, 5), (np.inf, 0)])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f4"])
def test_a_slope_that_is_none_scales_nothing(tmp_path, slope, inter, dtype):
    raw = np.arange(60).reshape(3, 4, 5)
    path = save(tmp_path / "scan.nii", raw.astype(dtype), np.eye(4))
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, inter], dtype[0] + "f4").tobytes()
    path.write_bytes(content)
    np.testing.assert_array_equal(read_volume(path).data, raw)


def test_voxels_without_a_size_are_told_of(tmp_path):
    """The size is asked for where the header places voxels by it, and not where a sform says where they are."""
    path = simple(tmp_path / "scan.nii", sform_code=0, qform_code=1)
    content = bytearray(path.read_bytes())
    content[80:92] = np.array([2, 0, np.nan], "<f4").tobytes()
    path.write_bytes(content)
    told = "scan.nii: no usable size of voxels along y and z in the header; taken for 1 mm"
    with pytest.warns(UserWarning, match=told):
        assert read_volume(path).spacing == (2, 1, 1)
    content[252:256] = np.array([0, 1], "<i2").tobytes()
    content[280:328] = np.diag([5, 6, 7, 1]).astype("<f4")[:3].tobytes()
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_volume(path).spacing == (5, 6, 7)


def test_negative_voxel_sizes_count_as_positive(tmp_path):
    """NIfTI's place for a sign is another one."""
    path = simple(tmp_path / "scan.nii", sform_code=0, qform_code=1)
    content = bytearray(path.read_bytes())
    content[80:92] = np.array([-2, 3, -4], "<f4").tobytes()
    path.write_bytes(content)
    volume = read_volume(path)
    assert volume.spacing == (2, 3, 4)
    assert np.allclose(np.abs(volume.grid.affine_mm[:3, :3]), np.diag([2, 3, 4]))


@pytest.mark.parametrize("kind", ["nan", "singular", "zero", "no codes"])
def test_without_an_orientation_the_array_is_taken_as_ras(tmp_path, kind):
    data = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    image = nib.Nifti1Image(data, np.eye(4))
    fill = {"nan": np.nan, "singular": 1, "zero": 0}
    rows = np.eye(4)[:3] if kind == "no codes" else np.full((3, 4), fill[kind])
    for name, row in zip(("srow_x", "srow_y", "srow_z"), rows):
        image.header[name] = row
    image.header["sform_code"] = 0 if kind == "no codes" else 1
    image.header["qform_code"] = 0
    image.header["pixdim"][1:4] = (1, 2, 0)
    with open(tmp_path / "scan.nii", "wb") as file:
        image.header["vox_offset"] = 352
        image.header["magic"] = b"n+1"
        file.write(image.header.binaryblock + bytes(4) + data.tobytes(order="F"))
    with pytest.warns(UserWarning, match="scan.nii.*orientation|size of voxels along z in the header; taken for 1 mm"):
        volume = read_volume(tmp_path / "scan.nii")
    np.testing.assert_array_equal(volume.data, data)
    assert volume.spacing == (1, 2, 1)
    np.testing.assert_array_equal(volume.grid.affine_mm, np.diag([1.0, 2, 1, 1]))
    write_volume(tmp_path / "out.nii", data, volume.grid)
    written = nib.load(tmp_path / "out.nii")
    np.testing.assert_array_equal(np.asarray(written.dataobj), data)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii").affine)


def test_trailing_single_axes_are_dropped(tmp_path):
    data = np.random.default_rng(0).random((3, 4, 5, 1), dtype=np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.data, data[..., 0])
    write_volume(tmp_path / "out.nii.gz", volume.data, volume.grid)
    assert nib.load(tmp_path / "out.nii.gz").shape == (3, 4, 5)


def test_values_that_are_not_finite_become_the_lowest_of_the_others(tmp_path):
    data = np.full((3, 4, 5), -990.0)
    data[2] = 40
    data[0, 0, 0], data[1, 1, 1], data[2, 2, 2], data[0, 1, 2] = np.nan, np.inf, -np.inf, 1e300
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii.gz")
    with pytest.warns(UserWarning, match="scan.nii.gz: 4 "):
        volume = read_volume(tmp_path / "scan.nii.gz")
    data[~(np.abs(data) < 1000)] = -990
    np.testing.assert_array_equal(volume.data, data)


def test_a_volume_of_nan_reads_as_zeros(tmp_path):
    nib.save(nib.Nifti1Image(np.full((3, 4, 5), np.nan), np.eye(4)), tmp_path / "scan.nii.gz")
    with pytest.warns(UserWarning, match="scan.nii.gz: 60 "):
        assert (read_volume(tmp_path / "scan.nii.gz").data == 0).all()


def test_good_files_read_without_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_volume(simple(tmp_path / "scan.NII.GZ"))
        read_volume(simple(tmp_path / "scan.nii", shape=(1, 1, 1), dtype=np.int16))


def bad_files(folder: Path) -> dict[str, Path]:
    good = simple(folder / "good.nii").read_bytes()
    packed = gzip.compress(good)
    files = {
        "missing.nii": None,
        "empty.nii": b"",
        "empty.nii.gz": b"",
        "text.nii": b"no scan at all, only text" * 100,
        "text.nii.gz": b"no scan at all, only text" * 100,
        "packed_text.nii.gz": gzip.compress(b"no scan at all" * 100),
        "short.nii": good[:-5],
        "header_only.nii": good[:352],
        "half_header.nii": good[:200],
        "short.nii.gz": gzip.compress(good[:-5]),
        "cut.nii.gz": packed[: len(packed) // 2],
        "checksum.nii.gz": gzip.compress(simple(folder / "larger.nii", (64, 64, 64)).read_bytes())[:-8] + bytes(8),
        "bits.nii.gz": packed[:60] + b"\xff" * 40 + packed[100:],
        "data_type.nii": good[:70] + b"\x77\x77" + good[72:],
        "huge.nii": good[:42] + b"\xff\x7f\xff\x7f\xff\x7f" + good[48:],
    }
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    arrays = {
        "complex.nii": np.zeros((3, 4, 5), np.complex64),
        "rgb.nii": rgb,
        "flat.nii": np.zeros((4, 5), np.float32),
        "series.nii.gz": np.zeros((3, 4, 5, 2), np.float32),
        "no_voxels.nii": np.zeros((3, 0, 5), np.float32),
    }
    for name, array in arrays.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / name)
    return {name: folder / name for name in [*files, *arrays]}


def test_bad_files_are_named_in_one_line(tmp_path):
    for name, path in bad_files(tmp_path).items():
        with warnings.catch_warnings(), pytest.raises(VolumeError) as caught:
            warnings.simplefilter("error")
            read_volume(path)
        message = str(caught.value)
        assert str(path) in message and "expected" in message and "\n" not in message, name
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(VolumeError, match="folder.nii"):
        read_volume(tmp_path / "folder.nii")


@needs_linux
def test_a_file_that_may_not_be_read_is_named():
    """Not in pytest's own folder, which other users may not enter."""
    with tempfile.TemporaryDirectory() as folder:
        path = simple(Path(folder) / "secret.nii")
        os.chmod(folder, 0o755)
        path.chmod(0)
        user = os.geteuid()
        try:
            os.seteuid(user or 65534)  # root may read everything
            with pytest.raises(VolumeError, match="secret.nii: expected .* found PermissionError"):
                read_volume(path)
        finally:
            os.seteuid(user)


def test_bad_scores_leave_nothing_behind(tmp_path):
    grid = read_volume(simple(tmp_path / "scan.nii")).grid
    scores = np.zeros(grid.ras_shape, dtype=np.float32)
    out = tmp_path / "out"
    out.mkdir()
    for value in (np.nan, np.inf, -0.001, 1.001):
        bad = scores.copy()
        bad[1, 2, 3] = value
        with pytest.raises(ValueError, match="pred.nii.gz"):
            write_volume(out / "pred.nii.gz", bad, grid)
    with pytest.raises(VolumeError, match=r"pred.nii.gz.*\(4, 5, 6\).*\(6, 5, 4\)"):
        write_volume(out / "pred.nii.gz", scores.T, grid)
    with pytest.raises(VolumeError, match="pred.txt"):
        write_volume(out / "pred.txt", scores, grid)
    assert list(out.iterdir()) == []


def test_a_write_that_fails_keeps_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    grid = read_volume(simple(tmp_path / "scan.nii")).grid
    out = tmp_path / "out"
    out.mkdir()
    write_volume(out / "pred.nii.gz", np.zeros(grid.ras_shape, np.float32), grid)
    before = (out / "pred.nii.gz").read_bytes()

    def no_space(*_):
        assert len(list(out.iterdir())) == 2  # the temporary file stands beside the final one
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="no space"):
        write_volume(out / "pred.nii.gz", np.ones(grid.ras_shape, np.float32), grid)
    assert [path.name for path in out.iterdir()] == ["pred.nii.gz"] and (out / "pred.nii.gz").read_bytes() == before


def test_writing_replaces_and_compresses_by_name(tmp_path):
    grid = read_volume(simple(tmp_path / "scan.nii")).grid
    for name in ("pred.nii.gz", "pred.nii", "PRED2.NII.GZ"):
        for value in (0.25, 0.75):
            write_volume(tmp_path / name, np.full(grid.ras_shape, value), grid)  # float64 scores are taken too
        assert (read_volume(tmp_path / name).data == 0.75).all()
        assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") == name.lower().endswith("gz")


def test_packed_files_are_ordinary_gzip(tmp_path):
    grid = read_volume(simple(tmp_path / "scan.nii")).grid
    scores = np.random.default_rng(0).random(grid.ras_shape, dtype=np.float32)
    for name in ("a.nii", "a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, scores, grid)
    packed = (tmp_path / "a.nii.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "a.nii").read_bytes()
    assert packed == (tmp_path / "b.nii.gz").read_bytes()  # neither name nor time in it
    half = len(packed) // 2
    plain = gzip.decompress(packed)
    (tmp_path / "parts.nii.gz").write_bytes(gzip.compress(plain[:half]) + gzip.compress(plain[half:]))
    np.testing.assert_array_equal(read_volume(tmp_path / "parts.nii.gz").data, scores)


def test_find_volumes_takes_volumes_only(tmp_path):
    for name in (
        "b.nii.gz",
        "a.nii",
        "C.NII.GZ",
        ".hidden.nii.gz",
        "notes.txt",
        "b.nii.gz.txt",
        "gz",
        "x.gz",
    ):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.nii").mkdir()
    assert [source.path.name for source in find_volumes(tmp_path)] == [
        "C.NII.GZ",
        "a.nii",
        "b.nii.gz",
        "folder.nii",
    ]
    assert [path.name for path in survey(tmp_path).others] == [
        ".hidden.nii.gz",
        "b.nii.gz.txt",
        "gz",
        "notes.txt",
        "x.gz",
    ]
    assert find_volumes(str(tmp_path / "folder.nii")) == []
    # A file stands for itself.
    assert [source.path for source in find_volumes(tmp_path / "a.nii")] == [tmp_path / "a.nii"]
    alone = survey(tmp_path / "notes.txt")
    assert not alone.volumes and alone.others == [tmp_path / "notes.txt"]
    with pytest.raises(VolumeError, match="nowhere"):
        find_volumes(tmp_path / "nowhere")


@pytest.mark.parametrize("name,dtype", [("a.nii", "<i2"), ("a.nii.gz", "<i2"), ("a.nii", "<f8"), ("a.nii.gz", ">f8")])
def test_reading_and_writing_make_no_float64_copy(tmp_path, name, dtype):
    shape = (160, 160, 192)  # 19 MiB as float32, 38 as float64
    raw = np.random.default_rng(0).integers(0, 2, shape, dtype=np.uint8)
    path = save(tmp_path / name, raw.astype(dtype), oriented_affine("LPS"), 0.5, 0.25)
    size = 4 * np.prod(shape)
    tracemalloc.start()
    try:
        volume = read_volume(path)
        read_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        write_volume(tmp_path / "out.nii", volume.data, volume.grid)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * size
    finally:
        tracemalloc.stop()
    # the result, and slabs of 1 M voxels as raw bytes (joined from pieces), float64, float32
    assert read_peak < size + 34 * 2**20
    for start in range(0, shape[2], 32):  # many slabs, each in its place
        scaled = raw[::-1, ::-1, start : start + 32] * 0.5 + 0.25
        np.testing.assert_array_equal(volume.data[:, :, start : start + 32], scaled)


def test_views_in_the_file_s_axes_have_each_voxel_at_its_index_and_share_memory():
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            grid = Grid((2, 3, 4), np.eye(4), nib.Nifti1Header(), axes, flips, np.eye(4))
            ras = np.arange(24).reshape(grid.ras_shape)
            in_file = grid.to_file(ras)
            assert in_file.shape == grid.shape and np.shares_memory(in_file, ras)
            for place in np.ndindex(ras.shape):
                index = grid.file_index(np.array(place))
                assert in_file[tuple(index.astype(int))] == ras[place]
                assert tuple(grid.ras_index(index)) == place


def test_an_independent_reader_sees_the_same_geometry(tmp_path):
    """SimpleITK, which the challenge's own tools read with, finds prediction and input at the same place in space."""
    import SimpleITK as sitk

    rng = np.random.default_rng(4)
    source = save(
        tmp_path / "scan.nii.gz",
        rng.random((6, 7, 5), dtype=np.float32),
        oriented_affine("PIR", (1.5, 2.0, 3.0)),
    )
    volume = read_volume(source)
    write_volume(tmp_path / "scores.nii.gz", np.clip(volume.data, 0, 1), volume.grid)
    before, after = (sitk.ReadImage(str(tmp_path / name)) for name in ("scan.nii.gz", "scores.nii.gz"))
    assert before.GetSize() == after.GetSize() and before.GetSpacing() == after.GetSpacing()
    assert before.GetOrigin() == after.GetOrigin() and before.GetDirection() == after.GetDirection()
    assert np.allclose(sitk.GetArrayFromImage(before), sitk.GetArrayFromImage(after))


def test_volumes_of_several_folders_by_name(tmp_path):
    for name in ("one/b.nii.gz", "two/a.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folders = [tmp_path / "one", tmp_path / "two"]
    assert list(named_volumes(folders)) == ["a", "b"] and list(named_volumes(folders, ["b"])) == ["b"]
    with pytest.raises(VolumeError, match="expected a volume called c, found 2 others"):
        named_volumes(folders, ["c"])
    (tmp_path / "two" / "b.nii").write_bytes(b"")
    with pytest.raises(VolumeError, match="expected each volume's name once, found b twice"):
        named_volumes(folders)
