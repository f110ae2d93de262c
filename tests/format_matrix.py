#!/usr/bin/env python3
"""Volumes of every axis order, type and format, written and read by libraries in one process, and by this package in another.

Run as `write FOLDER SUFFIX`, which leaves files and beside each what nibabel, SimpleITK or pydicom reads there, then as
`read FOLDER`, which prints a line for each volume that this package reads otherwise. The second is meant for a process whose
freed memory is overwritten (MALLOC_PERTURB_). With LARGE behind the suffix the volumes have 216 voxels a side: 40 MB in float32,
more than the C library ever keeps.
"""

import gc
import itertools
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".dcm")
DTYPES = ("float32", "float64", "int16", "uint8")
SHAPE, LARGE_SHAPE = (9, 11, 7), (216, 216, 216)
SPACING, ORIGIN = np.array([0.5, 1.25, 3.0]), np.array([-12.5, 30.25, 101.125])
LPS = np.diag([-1.0, -1, 1, 1])
# each direction is where the file's axes run in RAS, as columns
ORDERS = [
    np.eye(3)[:, list(axes)] * np.array(signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
LARGE_ORDERS = [ORDERS[0], ORDERS[-1]]  # RAS, where nothing need be moved, and one where all is


def cases(suffix: str, large: bool) -> Iterator[tuple[str, np.ndarray, str]]:
    """Name, direction and type of each volume of a format. DICOM holds whole numbers on right-handed axes."""
    orders = LARGE_ORDERS if large else ORDERS
    dtypes = ("float32",) if large else DTYPES
    if suffix == ".dcm":
        orders, dtypes = [order for order in ORDERS if np.linalg.det(order) > 0], ("int16",)
    for number, order in enumerate(orders):
        for dtype in dtypes:
            yield f"{number:02}_{dtype}", order, dtype


def voxels_of(dtype: str, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Numbers (I, J, K) that float32 holds exactly, and of which neighbours differ."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return ((i * 131 + j * 17 + k * 7 + seed) % 251).astype(dtype)


def affine_of(order: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = order * SPACING, ORIGIN
    return affine


# --- libraries write and read ----------------------------------------------------------------------------------------


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Written by nibabel, of either byte order; read by nibabel."""
    endian = "<>"[int(voxels[0, 0, 0]) % 2]
    image = nib.Nifti1Image(voxels, affine, nib.Nifti1Header(endianness=endian))
    image.header.set_data_dtype(voxels.dtype.newbyteorder(endian))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    read = nib.as_closest_canonical(nib.load(path))
    return np.asarray(read.dataobj).astype(np.float32), read.affine


def read_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Turned and copied by SimpleITK: (X, Y, Z) in RAS order, and its affine in mm."""
    import SimpleITK as sitk

    read = sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS")
    ras = np.eye(4)
    ras[:3, :3] = np.array(read.GetDirection()).reshape(3, 3) * read.GetSpacing()
    ras[:3, 3] = read.GetOrigin()
    return sitk.GetArrayFromImage(read).T, LPS @ ras


def write_itk(path: Path, voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Written and read by SimpleITK."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = LPS @ affine
    image.SetSpacing(SPACING.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / SPACING).ravel().tolist())
    sitk.WriteImage(image, str(path))
    data, ras = read_itk(path)
    return data.astype(np.float32), ras


def write_dicom(path: Path, voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Written by pydicom, a file for each plane; put together by hand from what pydicom reads."""
    import pydicom

    path.mkdir()
    lps = LPS @ affine
    for number in np.random.default_rng(0).permutation(voxels.shape[2]):
        plane_of_dicom(voxels[:, :, number], lps @ np.array([0, 0, number, 1.0]), lps, number).save_as(
            path / f"{number * 5 % 7}.dcm", enforce_file_format=True
        )
    normal = lps[:3, 2] / SPACING[2]
    files = [pydicom.dcmread(file) for file in path.iterdir()]
    files.sort(key=lambda file: float(np.array(file.ImagePositionPatient, float) @ normal))
    whole = np.stack([file.pixel_array.T * file.RescaleSlope + file.RescaleIntercept for file in files], -1)
    first, last = (np.array(files[end].ImagePositionPatient, float) for end in (0, -1))
    cosines = np.array(files[0].ImageOrientationPatient, float).reshape(2, 3)
    read = np.eye(4)
    read[:3, 0] = cosines[0] * files[0].PixelSpacing[1]
    read[:3, 1] = cosines[1] * files[0].PixelSpacing[0]
    read[:3, 2], read[:3, 3] = (last - first) / (len(files) - 1), first
    canonical = nib.as_closest_canonical(nib.Nifti1Image(whole.astype(np.float32), LPS @ read))
    return np.asarray(canonical.dataobj), canonical.affine


def plane_of_dicom(plane: np.ndarray, place: np.ndarray, lps: np.ndarray, number: int):
    """A CT slice of a plane (I, J), in Hounsfield units that are stored scaled."""
    import pydicom

    one = pydicom.Dataset()
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
    one.PatientName, one.PatientID = "none^", "none"
    one.PatientBirthDate = one.PatientSex = one.StudyDate = one.StudyTime = one.StudyID = ""
    one.AccessionNumber = one.ReferringPhysicianName = ""
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.4"
    one.Modality, one.SeriesNumber, one.InstanceNumber = "CT", 1, int(number) + 1
    one.ImagePositionPatient = [f"{x:.6f}" for x in place[:3]]
    one.ImageOrientationPatient = [f"{x:.6f}" for x in (lps[:3, :2] / SPACING[:2]).T.ravel()]
    one.PixelSpacing, one.SliceThickness = [float(SPACING[1]), float(SPACING[0])], float(SPACING[2])
    one.Columns, one.Rows = plane.shape
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation, one.SamplesPerPixel = 15, 1, 1
    one.PhotometricInterpretation, one.RescaleSlope, one.RescaleIntercept = "MONOCHROME2", 2, -100
    one.PixelData = np.ascontiguousarray(plane.T.astype("<i2")).tobytes()
    return one


def write_frames(path: Path, voxels: np.ndarray, affine: np.ndarray, places: list[float], scales=None):
    """One file of a CT's planes as an enhanced one has them: frames at such places along the third axis, each with a slope of its
    own where `scales` are given."""
    import pydicom

    def item(**values):
        one = pydicom.Dataset()
        for name, value in values.items():
            setattr(one, name, value)
        return [one]

    lps = LPS @ affine
    one = plane_of_dicom(voxels[:, :, 0], lps[:, 3], lps, 0)
    cosines = one.ImageOrientationPatient
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(one, name)
    del one.RescaleSlope, one.RescaleIntercept
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    shared = {
        "PlaneOrientationSequence": item(ImageOrientationPatient=cosines),
        "PixelMeasuresSequence": item(
            PixelSpacing=[SPACING[1], SPACING[0]], SliceThickness=SPACING[2], SpacingBetweenSlices=SPACING[2]
        ),
    }
    one.SharedFunctionalGroupsSequence = item(**shared)
    frames = []
    for place, scale in zip(places, scales or [2.0] * len(places)):
        at = [f"{x:.6f}" for x in (lps @ [0, 0, place, 1])[:3]]
        frames += item(
            PlanePositionSequence=item(ImagePositionPatient=at),
            PixelValueTransformationSequence=item(RescaleSlope=scale, RescaleIntercept=-100, RescaleType="HU"),
        )
    one.PerFrameFunctionalGroupsSequence, one.NumberOfFrames = frames, len(frames)
    one.PixelData = np.ascontiguousarray(voxels.T.astype("<i2")).tobytes()
    path.parent.mkdir(parents=True)
    one.save_as(path, enforce_file_format=True)


def write_all(folder: Path, suffix: str, large: bool) -> None:
    """Files in FOLDER/in, and FOLDER/NAME.npz: what a library reads there as `data` (X, Y, Z), RAS, and its `affine`."""
    write = {".nii": write_nifti, ".gz": write_nifti, ".dcm": write_dicom}.get(Path(f"x{suffix}").suffix, write_itk)
    (folder / "in").mkdir(parents=True)
    for seed, (name, order, dtype) in enumerate(cases(suffix, large)):
        path = folder / "in" / (name if suffix == ".dcm" else f"{name}{suffix}")
        voxels = voxels_of(dtype, LARGE_SHAPE if large else SHAPE, seed)
        data, affine = write(path, voxels, affine_of(order))
        np.savez(folder / f"{name}.npz", data=data, affine=affine)


# --- this package reads ----------------------------------------------------------------------------------------------


def churn(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Use and give back memory in pieces such as the volumes had. Some are returned: while they are held, nothing else can come to
    lie where a volume should not have been."""
    gc.collect()
    pieces: list[np.ndarray] = []
    for dtype in reversed(DTYPES):
        pieces.clear()
        pieces += [np.full(shape, 99, dtype) for shape in shapes for _ in range(2)]
    gc.collect()
    return pieces


def read_all(folder: Path) -> list[str]:
    """A line for each volume of `write_all` that is not read as the library read it."""
    from mood_submission.volumes import find_volumes, read_volume

    wrong, sources = [], find_volumes(folder / "in")
    volumes = {source.name: read_volume(source) for source in sources}
    held = churn([volume.data.shape for volume in volumes.values()])
    for name, volume in volumes.items():
        with np.load(folder / f"{name}.npz") as stored:
            data, affine = stored["data"], stored["affine"]
        shares = float((volume.data == data).mean()) if volume.data.shape == data.shape else 0.0
        first, last = np.zeros(3), np.array(data.shape) - 1.0
        found = [(volume.grid.affine_mm @ [*volume.grid.file_index(at), 1])[:3] for at in (first, last)]
        wanted = [(affine @ [*at, 1])[:3] for at in (first, last)]
        flags = volume.data.flags
        if shares < 1:
            wrong.append(f"{name}: {shares:.1%} of the voxels are right")
        if not np.allclose(found, wanted, atol=1e-4):
            wrong.append(f"{name}: at {found}, should be at {wanted}")
        if not (flags.f_contiguous and flags.writeable and flags.owndata and volume.data.dtype == np.float32):
            wrong.append(f"{name}: {volume.data.dtype} {flags}")
    held.clear()
    return [*wrong, f"{len(volumes)} volumes read"]


def main() -> None:
    what, folder, *more = sys.argv[1:]
    warnings.simplefilter("error")
    if what == "write":
        write_all(Path(folder), more[0], "LARGE" in more)
    else:
        print(json.dumps(read_all(Path(folder))))


if __name__ == "__main__":
    main()
