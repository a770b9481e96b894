"Sphinx's settings for the site. Its pages are written by `fincompress.app.pages.site`."
from fincompress.app.pages.sphinx_hooks import document, draw_block, draw_inline, left_out, plain_signature
from fincompress.app.pages.site import settings
from fincompress.lib.run.source import project_root

facts = settings(project_root())
project, author, version, language = facts["title"], facts["author"], facts["version"], "en"
project_copyright = facts["copyright"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]

nb_execution_mode, nb_ipywidgets_js = "off", {} # notebooks come with their outputs; no script from elsewhere
nb_render_markdown_format = "gfm" # outputs may hold tables
nb_code_prompt_show, nb_code_prompt_hide = "Show the imports", "Hide the imports"
myst_enable_extensions, myst_update_mathjax, myst_heading_anchors = ["amsmath", "attrs_block", "dollarmath"], False, 2
html_math_renderer, highlight_language = "mathml", "none"
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource", "no-value": True}
add_module_names = autodoc_inherit_docstrings = False
smartquotes_action = "D" # dashes, not quotes
autodoc_typehints_format, python_maximum_signature_line_length, python_use_unqualified_type_names = "short", 100, True
toc_object_entries_show_parents = "hide"

html_theme, html_title, html_static_path = "sphinx_book_theme", project, ["_static"]
html_css_files, html_favicon = ["site.css"], "_static/favicon.svg"
html_baseurl = f"{facts['doc_host']}{facts['doc_baseurl']}/"
html_copy_source = html_show_sourcelink = False
html_context = {"default_mode": "auto"} # light or dark, as the reader's system is
html_theme_options = dict(repository_url=facts["git_url"], repository_branch=facts["branch"], use_repository_button=True,
                          use_download_button=False, navbar_persistent=[], show_navbar_depth=1, toc_title="On this page",
                          search_bar_text="Search", logo={"text": project})


def setup(app):
    app.connect("autodoc-process-docstring", document)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-skip-member", left_out)
    app.add_html_math_renderer("mathml", inline_renderers=(draw_inline, None), block_renderers=(draw_block, None))
