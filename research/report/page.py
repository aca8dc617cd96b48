"""Reports as single HTML pages that need no network: templates of the package, which extend page.html.j2."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from research.files import write_atomically

REPORT = "report.html"


def write_page(folder: Path, template: str, contents: Mapping[str, Any]) -> Path:
    """Write FOLDER/report.html, whole or not at all, and return its path.

    `template` is a path within `research`. Templates also get `written`, the time. All values are escaped
    except Markup. Raises DataError.
    """
    environment = Environment(
        loader=PackageLoader("research", ""),
        autoescape=True,  # questions, passages and responses may hold any HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = f"{datetime.now():%Y-%m-%d %H:%M}"
    page = environment.get_template(template).render({"written": written, **contents})
    target = folder / REPORT
    write_atomically(target, page)
    return target
