"""What the challenge fixes: its regions and its tasks."""

REGIONS = ("brain", "abdom")
TASKS = ("sample", "pixel")  # one score a volume, or one a voxel
BOTH = "both"  # tasks of one run, which share all that the networks make of a volume
