"README.md is `nbs/index.ipynb`, executed and converted."
import re, shutil
import pytest
from fincompress.app.pages.readme import NO_RUN, readme, run_details, run_headline, write_readme
from fincompress.lib.run.source import project_root

ROOT = project_root()

@pytest.fixture(scope="module")
def generated(): return readme(ROOT)

def test_readme_is_up_to_date(generated):
    assert (ROOT/"README.md").read_text(encoding="utf-8") == generated, "README.md is not what nbs/index.ipynb gives: run `make readme`"

def test_readme_holds_no_leftovers_of_a_notebook(generated):
    for left in ("#|", "<div", "<style", "import Markdown", "IPython", "Traceback", str(ROOT)): assert left not in generated, left
    assert generated.startswith("# FinCompress\n") and generated.endswith("\n") and "\n\n\n" not in generated

def test_files_and_commands_that_the_readme_names_exist(generated):
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", generated): assert (ROOT/target).exists(), target
    for folder in re.findall(r"`((?:nbs|tests|profiles|fincompress)(?:/\w+)*/)`", generated): assert (ROOT/folder).is_dir(), folder
    targets = re.findall(r"^(\w+):", (ROOT/"Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"^make (\w+)", generated, re.M)) <= set(targets)

def test_writing_it_twice_changes_nothing(tmp_path):
    (tmp_path/"nbs").mkdir()
    shutil.copy(ROOT/"nbs/index.ipynb", tmp_path/"nbs/index.ipynb")
    write_readme(tmp_path)
    first = (tmp_path/"README.md").read_bytes()
    write_readme(tmp_path)
    assert (tmp_path/"README.md").read_bytes() == first and [p.name for p in tmp_path.iterdir() if p.is_file()] == ["README.md"]

def test_without_a_reference_run_it_says_so(tmp_path): assert run_headline(tmp_path) == run_details(tmp_path) == NO_RUN
