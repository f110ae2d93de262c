"""What the challenge fixes: its regions and its tasks."""

REGIONS = ("brain", "abdom")
TASKS = ("sample", "pixel")  # one score a volume, or one a voxel
