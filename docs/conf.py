"""How Sphinx builds these pages: ``sphinx-build -W docs FOLDER``, with the extra ``docs``."""

from importlib import metadata

project = "SPViT in JAX"
author = "the authors of spvit_jax"
release = metadata.version("spvit_jax")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["examples"]
html_theme = "furo"
html_title = "SPViT in JAX"

myst_heading_anchors = 3  # links to headings, as on GitHub
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
napoleon_use_ivar = True  # attributes are described once
