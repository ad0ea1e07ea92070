"""The Jinja environment of every card: strict about what is missing, with the filters that all of them need."""

from __future__ import annotations

from pathlib import Path


def environment(folder: Path, autoescape=False):
    """An environment over a folder of templates.

    Args:
        folder: of the templates.
        autoescape: as Jinja takes it: a bool, or a function of a template's name.
    """
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
    )
    made.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    return made
