"""The names that users choose from: the challenge's regions and tasks, precisions and engines."""

REGIONS = ("brain", "abdom")
# One score for a volume, or one for each voxel.
TASKS = ("sample", "pixel")
# Both tasks in one run, which share the networks' work.
BOTH = "both"
# What the networks can compute in.
PRECISIONS = ("float32", "tf32", "bf16", "int8")
# What computes them.
ENGINES = ("torch", "onnx")
# ONNX Runtime in int8 on a CPU, torch on any other device, see `engines.choice.chosen`.
AUTO_ENGINE = "auto"
# This variable of the environment says which engine computes where --engine does not.
ENGINE_VARIABLE = "MOOD_ENGINE"
