"""The site of the documentation: `make docs` builds it in docs/_build/html.

Sphinx reads the whole checkout, so that a link between two pages, or to README.md, is the same in
the site and on GitHub. MyST checks these links and their anchors; links to other sites are not
opened.
"""

import importlib.util
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generated

import videomae_jax

project = "videomae_jax"
author = "The videomae_jax authors"
release = videomae_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "data/**", "experiments/README.md", "launch/README.md"]
exclude_patterns = ["docs/_build", ".*", "build", "dist", "runs", "tests", "videomae_jax"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
# Notebooks are stored without outputs. They run here, each in an empty folder, and again when they
# have changed: minutes each on two cores. `make docs NOTEBOOKS=off` shows them without outputs.
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parent / "_build/notebooks")
nb_execution_in_temp = True
nb_execution_timeout = 900
nb_execution_excludepatterns = [] if importlib.util.find_spec("libtpu") else ["06_tpu_pod.ipynb"]

# The lexer of notebooks does not know that a `!` line may go on after a backslash.
suppress_warnings = ["misc.highlighting_failure"]
highlight_language = "text"  # of blocks without a language
default_role = "code"  # docstrings have `names` in single backticks
smartquotes_action = "D"  # dashes alone
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"videomae_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["redirect"]  # index.html leads to the first page
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def fill_in(app, docname: str, source: list[str]) -> None:
    """Replace `<!-- generated: NAME -->` by what the function NAME of generated.py returns."""
    pattern = r"<!-- generated: (\w+) -->"
    source[0] = re.sub(pattern, lambda found: getattr(generated, found[1])(), source[0])


def setup(app) -> None:
    """Let Sphinx fill in generated text as it reads a page."""
    app.connect("source-read", fill_in)
