"""The challenge's regions and tasks."""

REGIONS = ("brain", "abdom")
# One score for a volume, or one for each voxel.
TASKS = ("sample", "pixel")
# Both tasks in one run, which share the networks' work.
BOTH = "both"
