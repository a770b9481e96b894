"""The wheel: it has the templates and the models, and they open where there is no clone."""
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT/"fincompress/templates"
TEMPLATES = {path.relative_to(PLACE).as_posix() for path in PLACE.rglob("*")
             if path.is_file() and path.name != ".npmrc"} # which only makes a lock file
MODELS = ROOT/"fincompress/models"
PROGRAM = """
import fincompress
from fincompress.app.templates import render
print(fincompress.__file__)
print(render("limits.md.j2", length=77, shared=True))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Built from a copy, since building leaves files in its folder."
    place = tmp_path_factory.mktemp("wheel")
    source = place/"source"
    shutil.copytree(ROOT/"fincompress", source/"fincompress",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT/name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", place/"out"]
    subprocess.run([*pip, "--disable-pip-version-check", source], check=True, timeout=600)
    (file,) = (place/"out").glob("fincompress-*.whl")
    return file


def test_the_wheel_has_every_template(wheel):
    names = {*zipfile.ZipFile(wheel).namelist()}
    assert TEMPLATES
    assert {f"fincompress/templates/{name}" for name in TEMPLATES} <= names
    assert "fincompress/app/use/classifier.py" in names
    assert not [name for name in names if name.startswith(("tests/", "nbs/", "outputs/"))]


def test_the_wheel_has_every_extra(wheel):
    "What the messages tell a user to install."
    content = zipfile.ZipFile(wheel)
    (name,) = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
    lines = content.read(name).decode().splitlines()
    for extra in ("study", "demo", "adapt", "document", "score", "scale", "serve", "web"):
        assert f"Provides-Extra: {extra}" in lines
    (syntok,) = [line for line in lines if line.startswith("Requires-Dist: syntok")]
    assert 'extra == "document"' in syntok


@pytest.mark.skipif(not MODELS.is_dir(), reason="no packaged models are here yet")
def test_the_wheel_has_every_model(wheel):
    files = {p.relative_to(ROOT).as_posix() for p in MODELS.rglob("*") if p.is_file()}
    assert files and files <= {*zipfile.ZipFile(wheel).namelist()}
    assert wheel.stat().st_size <= 25e6


def test_a_template_opens_outside_the_clone(wheel, tmp_path):
    "The package is unpacked elsewhere and found before the clone's."
    zipfile.ZipFile(wheel).extractall(tmp_path/"packages")
    code = f"import sys; sys.path.insert(0, {str(tmp_path/'packages')!r}){PROGRAM}"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, check=True).stdout.splitlines()
    assert said[0].startswith(str(tmp_path/"packages"))
    assert "- Texts are cut after 77 word pieces." in said
