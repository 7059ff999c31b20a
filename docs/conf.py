"""How the documentation is built: ``make docs``, where every warning is an error."""

import flwr_ckpt

project = "flwr-ckpt"
author = "The flwr-ckpt authors"
version = release = flwr_ckpt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# `name` in a docstring becomes a link where there is something of that name here, else plain code.
default_role = "autolink"
autosummary_generate = False
autodoc_typehints = "none"  # docstrings say them, and say them better
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Types in docstrings are prose ("sequence of str"), and a `name` may be a parameter's, or of what is not public.
nitpick_ignore_regex = [("py:class", ".*"), ("py:obj", ".*")]

html_theme = "furo"
html_title = f"flwr-ckpt {release}"
html_copy_source = False
html_show_copyright = False
