"""Finds the region of a run that names none: the model file's, or the one that all volumes look like."""

import warnings
from collections.abc import Iterable

from ..model_file import load_model
from ..preprocessing.region import region_of
from ..runtime.contract import REGIONS
from ..runtime.names import in_one_line
from ..runtime.stopping import check_stopped
from ..volumes import Source, VolumeError, read_volume
from .options import AUTO, PredictOptions

EITHER = " or ".join(REGIONS)


def region_for(options: PredictOptions, sources: Iterable[Source]) -> str:
    """The region of a run: the one that is asked for, else the model file's, else the one that all volumes look like.

    Volumes that cannot be read are left out here, since they fail by themselves later. Those that look like no region for sure
    are taken for what the others are.

    Raises ModelError for what is no model file, and VolumeError, which names the file, where a volume looks like another region
    than the first, where all that can be read look like none, and where none can be read. Raises KeyboardInterrupt where the run is to stop.
    """
    if options.region != AUTO:
        return options.region
    if options.weights is not None:
        return load_model(options.weights, "cpu").about.region
    first: tuple[Source, str] | None = None
    unsure: Source | None = None
    unread = ""
    for source in sources:
        check_stopped()
        try:
            with warnings.catch_warnings():
                # The run itself tells what is odd about a file.
                warnings.simplefilter("ignore")
                volume = read_volume(source)
        except (VolumeError, OSError) as error:
            unread = unread or in_one_line(error)
            continue
        found = region_of(volume.data, volume.spacing)
        if found is None:
            unsure = unsure or source
            continue
        if first is not None and found != first[1]:
            raise VolumeError(
                f"{source}: expected region {first[1]} as of {first[0]}, found {found}; pass --region {EITHER}"
            )
        first = first or (source, found)
    if first is None and unsure is not None:
        raise VolumeError(f"{unsure}: expected a volume that looks like one region, found none; pass --region {EITHER}")
    if first is None:
        raise VolumeError(f"{options.input}: expected a volume that can be read, found none: {unread}")
    return first[1]
