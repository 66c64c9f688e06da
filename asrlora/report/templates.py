"""The pages' templates, by jinja2."""

from pathlib import Path
from typing import Any

import jinja2

MINUS = "\N{MINUS SIGN}"


def points(value: float) -> str:
    """A change in points, with its sign."""
    return f"{value:+.2f}".replace("-", MINUS)


def percent(fraction: float) -> str:
    """A rate in per cent."""
    return f"{100 * fraction:.2f} %"


def render(name: str, **values: Any) -> str:
    """A template of this folder with these values; what is no markup is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": points, "percent": percent}
    return environment.get_template(name).render(**values)
