"""Writes a report: index.html with all pictures and programs, and data/NUMBER.js with a volume's layers for the viewer."""

import json
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from ...about import About
from ...findings.objects import FALSE_BY_DEFAULT
from ...findings.thresholds import FALSE_ALARMS, HealthyVoxels, false_alarm_score
from ...runtime.files import write_text
from ...runtime.names import shown
from .collect import Entry, Sources, collect

HERE = resources.files(__package__)


def write_report(
    sources: Sources,
    out: Path,
    about: About | None = None,
    settings: dict[str, str] | None = None,
    outcomes: dict[str, dict] | None = None,
) -> list[Entry]:
    """Write the report of a run's files, and return its entries.

    sources: the files of the run.
    out: the folder to write to.
    about: the model's description, for healthy ranges and the weights' card.
    settings: of the run, by name.
    outcomes: see `collect`.
    Raises what `collect` raises, and OSError where the folder cannot be written to.
    """
    healthy = _healthy_voxels(about)
    entries = collect(sources, healthy, outcomes)
    (out / "data").mkdir(parents=True, exist_ok=True)
    for entry in entries:
        script = f'window.MOOD_DATA["{entry.number}"] = {json.dumps(entry.viewer)};\n'
        write_text(out / "data" / f"{entry.number}.js", script)
    facts = {"run": settings or {}, "weights": _card(about) if about else {}}
    page = _template().render(
        title="Anomaly report",
        entries=entries,
        healthy_range=_healthy_range(about),
        first_score=min(healthy.threshold(FALSE_BY_DEFAULT), 0.85) if healthy else 0.4,
        about={name: found for name, found in facts.items() if found},
        css=_static("report.css"),
        js=_static("report.js"),
        niivue=_static("niivue.umd.js"),
    )
    write_text(out / "index.html", page)
    write_text(out / "NIIVUE.txt", (HERE / "static" / "NIIVUE.txt").read_text("utf-8"))
    return entries


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown)
    return environment.from_string((HERE / "templates" / "index.html").read_text("utf-8"))


def _shown(value: object) -> object:
    """A value as the page shows it. Unprintable characters are escaped, except in this package's own files."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _static(name: str) -> Markup:
    """A file of this package, to be copied into the page."""
    return Markup((HERE / "static" / name).read_text("utf-8").replace("</script", "<\\/script"))


def _healthy_voxels(about: About | None) -> HealthyVoxels | None:
    return about.healthy_voxels.get(about.pixel_method) if about else None


def _healthy_range(about: About | None) -> dict | None:
    """The range of healthy hold-out volumes' sample scores, and the scores that few of them exceed."""
    scores = about.healthy_samples.get(about.sample_method) if about else None
    if not scores:
        return None
    alarms = {f"{share:.0%}": false_alarm_score(scores, share) for share in FALSE_ALARMS}
    return {"low": scores[0], "high": scores[-1], "volumes": len(scores), "alarms": alarms}


def _card(about: About) -> dict[str, str]:
    """The model file's description of itself, by name."""
    card = {
        "region": about.region,
        "voxels scored by": about.pixel_method,
        "volumes scored by": about.sample_method,
    }
    for name in ("data", "licence", "source"):
        if isinstance(about.training.get(name), str):
            card[name] = about.training[name]
    return card
