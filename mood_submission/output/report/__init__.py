"""The report: a page of pictures, plots and findings with a viewer. It loads nothing from the network."""

from importlib.util import find_spec

NEEDED = ("matplotlib", "jinja2")


def what_is_missing() -> str:
    """A line that names a package that reports need and that is not installed. Empty where there is none."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    return f"expected {missing[0]}, found none; pip install 'mood-submission[report]'" if missing else ""
