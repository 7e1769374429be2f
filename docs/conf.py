"""Sphinx configuration of the site that `make docs` builds; pydoctor builds the API reference."""

import re
from pathlib import Path

_SOURCE = (Path(__file__).parents[1] / "mufs" / "__init__.py").read_text(encoding="utf-8")

project = "mUFS"
author = "the mUFS developers"
copyright = f"2026 {author}"
release = version = re.findall(r'^__version__ = "(.*)"', _SOURCE, re.MULTILINE)[0]

extensions = ["myst_parser"]
root_doc = "index"
exclude_patterns = ["man"]
nitpicky = True

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = f"mUFS {release}"
html_static_path: list[str] = []
