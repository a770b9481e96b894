"Sphinx's settings for the site. Its pages are written by `fincompress.app.pages.site`."
from fincompress.app.pages.site import settings
from fincompress.app.pages.sphinx_hooks import (
    document,
    draw_block,
    draw_inline,
    left_out_of_page,
    plain_signature,
)
from fincompress.lib.run.source import project_root

facts = settings(project_root())
project = facts["title"]
author = facts["author"]
version = facts["version"]
language = "en"
project_copyright = facts["copyright"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
templates_path = ["_templates"]

nb_execution_mode = "off"  # notebooks come with their outputs
nb_ipywidgets_js = {}  # no script from elsewhere
nb_render_markdown_format = "gfm"  # outputs may hold tables
myst_enable_extensions = ["amsmath", "attrs_block", "dollarmath"]
myst_update_mathjax = False
myst_heading_anchors = 3
html_math_renderer = "mathml"
highlight_language = "none"
autodoc_default_options = {
    "members": True, "undoc-members": True, "member-order": "bysource", "no-value": True}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
add_module_names = False
smartquotes_action = "D"  # dashes, not quotes
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_baseurl = f"{facts['doc_host']}{facts['doc_baseurl']}/"
html_copy_source = False
html_show_sourcelink = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_theme_options = {
    "repository_url": facts["git_url"],
    "repository_branch": facts["branch"],
    "use_repository_button": True,
    "use_download_button": False,
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "toc_title": "On this page",
    "search_bar_text": "Search",
    "logo": {"text": project},
}


def setup(app):
    "Connect the hooks."
    app.connect("autodoc-process-docstring", document)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-skip-member", left_out_of_page)
    app.add_html_math_renderer("mathml", (draw_inline, None), (draw_block, None))
