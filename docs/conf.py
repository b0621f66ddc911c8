"""Sphinx: Markdown in, a static site out, nothing fetched from anywhere."""

project = "pumice"
author = "pumice contributors"
extensions = ["myst_nb"]
nb_execution_mode = "off"  # notebooks keep what they printed when they were run
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "pumice"
exclude_patterns = ["README.md"]
