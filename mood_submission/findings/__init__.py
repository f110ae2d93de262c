"""From scores to findings: numbered objects with a place, a size and how sure they are."""

from .objects import Finding, find, least_voxels
from .thresholds import HealthyVoxels, false_alarm_score

__all__ = ["Finding", "HealthyVoxels", "false_alarm_score", "find", "least_voxels"]
