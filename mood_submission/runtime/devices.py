"""Chooses the device that networks run on, by name."""

import warnings

import torch


def device_named(name: str | torch.device | None) -> torch.device:
    """The device of that name.

    name: as torch has it, such as "cpu", "cuda:1" or "mps". None for CUDA where there is one, else the CPU. "mps" (the GPU of
        Apple's processors) is the CPU where there is none, with a warning. So one command line does for every desk.
    Raises RuntimeError for what is no device. A GPU that is not there is found when it is used.
    """
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "mps" and not torch.backends.mps.is_available():
        warnings.warn(f"--device {name}: expected a GPU of Apple's, found none; computing on the CPU", stacklevel=2)
        return torch.device("cpu")
    return device
