"""A report to look at: a page of pictures, plots and findings, with a viewer, that asks nothing of the network."""

from importlib.util import find_spec

NEEDED = ("matplotlib", "jinja2")


def what_is_missing() -> str:
    """A line on what must be installed for reports and is not; empty where all is there."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    return f"expected {missing[0]}, found none; pip install 'mood-submission[report]'" if missing else ""
