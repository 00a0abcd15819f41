"""The templates of the pages."""

import functools
from typing import Any

import jinja2

from genfed.core.text import escape_controls


def _show(value: Any) -> Any:
    """Returns a value of a template, whose text is escaped where it has characters that a page does not show."""
    return escape_controls(value) if type(value) is str else value


@functools.cache
def load_templates() -> jinja2.Environment:
    """Returns the templates, which escape every text."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("genfed.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
    )
