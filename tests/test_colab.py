"""The notebook for Colab, on a simulated Colab.

It has Colab's module, an environment with its packages, another folder, and the form filled in."""
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from fincompress.lib.onnx.packaged import packaged_models
from fincompress.lib.run.files import read_json
from fincompress.lib.run.stage import STAGES, stage_file

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT/"nbs/colab.ipynb"
NOTED = """
import json, os
def noted(*what):
    with open(os.environ["NOTED"], "a") as file:
        file.write(json.dumps(what) + "\\n")
"""
COLAB = {
    "__init__.py": "",
    "drive.py": NOTED + """
def mount(place):
    noted("mount", place)
    os.makedirs(place + "/MyDrive", exist_ok=True)
""",
    "files.py": NOTED + """
def download(path):
    noted("download", path)
""",
}
DRIVER = """
import sys

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

source, target, folder = sys.argv[1:]
notebook = nbformat.read(source, 4)
own_kernel = KernelSpecManager(kernel_dirs=[])  # the one of this environment
manager = AsyncKernelManager(kernel_spec_manager=own_kernel)
resources = dict(metadata=dict(path=folder))
try:
    NotebookClient(notebook, km=manager, timeout=None, resources=resources).execute()
finally:
    nbformat.write(notebook, target)
"""
LEFT_OUT = (".git", ".venv", "outputs", "tests", "__pycache__", "*.egg-info", "_site",
            ".pytest_cache")
OTHERS = ("PIP_", "PYTHON", "FINCOMPRESS", "JUPYTER", "HF_", "IPYTHON", "VIRTUAL_ENV")


def code_cells(notebook) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_of(cell) -> str:
    return "".join(cell["source"])


def filled(notebook: dict, **fields) -> dict:
    "The notebook with its forms filled in: a field's line gets another value, as Colab does it."
    for name, value in fields.items():
        line = re.compile(rf"(?m)^{name} = .*?(?= #@param)")
        forms = [cell for cell in code_cells(notebook) if line.search(source_of(cell))]
        assert len(forms) == 1, f"{len(forms)} forms have a field {name}"
        new, count = line.subn(f"{name} = {value!r}", source_of(forms[0]))
        assert count == 1, f"the form has {count} fields {name}"
        forms[0]["source"] = new
    return notebook


class Colab:
    "A runtime: a folder to start in, a Python with the packages of this one, a repository."
    def __init__(self, place: Path):
        self.place = place
        self.content = place/"content"
        self.python = place/"venv/bin/python"
        self.repository = place/"repository"
        for folder in ("content", "home", "module/google/colab"):
            (place/folder).mkdir(parents=True)
        for name, text in COLAB.items():
            (place/"module/google/colab"/name).write_text(text)
        self.make_environment()
        self.make_repository()

    def make_environment(self):
        venv.create(self.place/"venv", with_pip=False)
        (self.site,) = (self.place/"venv/lib").glob("python*/site-packages")
        packages = f"{sysconfig.get_path('purelib')}\n"
        (self.site/"packages_of_colab.pth").write_text(packages)
        # what packages keep beside their modules
        (self.place/"venv/share").symlink_to(Path(sysconfig.get_path("data"))/"share")

    def make_repository(self):
        shutil.copytree(ROOT, self.repository, ignore=shutil.ignore_patterns(*LEFT_OUT))
        git = ["git", "-C", self.repository]
        author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, *author, "commit", "-q", "-m", "all"], check=True)

    def environment(self, on_colab: bool) -> dict:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
        kept |= dict(PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", HF_HUB_OFFLINE="1",
                     OMP_NUM_THREADS="1", MPLBACKEND="agg", COLUMNS="150")
        kept |= dict(HOME=str(self.place/"home"), NOTED=str(self.place/"noted.jsonl"),
                     PATH=f"{self.python.parent}:{os.environ['PATH']}")
        return kept | (dict(PYTHONPATH=str(self.place/"module")) if on_colab else {})

    def run(self, on_colab=True, **fields):
        "Execute the notebook in a new kernel; the process, and the notebook as executed."
        source = self.place/"filled.ipynb"
        target = self.place/"executed.ipynb"
        notebook = filled(read_json(NOTEBOOK), repository=str(self.repository), **fields)
        source.write_text(json.dumps(notebook))
        words = [self.python, "-c", DRIVER, source, target, self.content]
        process = subprocess.Popen(words, env=self.environment(on_colab), cwd=self.place,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            _, process.errors = process.communicate(timeout=3000)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process, read_json(target)

    def noted(self) -> list:
        lines = (self.place/"noted.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def text_of(cell) -> str:
    "All that a cell printed and showed as text."
    texts = []
    for output in cell["outputs"]:
        found = output.get("data", {}) | {"printed": output.get("text", "")}
        for kind in ("printed", "text/plain", "text/markdown"):
            texts += found.get(kind, "")
    return "".join(texts)


def cell_with(notebook, words):
    return next(cell for cell in code_cells(notebook) if words in source_of(cell))


def errors_in(notebook) -> list:
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return [output for output in outputs if output["output_type"] == "error"]


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    return Colab(tmp_path_factory.mktemp("colab"))


FORM = dict(profile="smoke", values="vanilla_kd.temperature=3", use_drive=True,
            variant="compact_narrow")


@pytest.fixture(scope="module")
def first(colab):
    "The smoke study from an empty runtime, on the simulated Drive, with a value of one's own."
    process, notebook = colab.run(**FORM)
    assert process.returncode == 0, process.errors[-3000:]
    return notebook, colab.content/"drive/MyDrive/FinCompress/colab", colab.noted()


def test_installed_packages_stay_as_they_are(colab, first):
    "Installing adds this project and nothing else, and changes no package's version."
    notebook, _, _ = first
    assert "packages are unchanged" in text_of(cell_with(notebook, "def installed"))
    added = importlib.metadata.distributions(path=[str(colab.site)])
    assert {d.name.lower() for d in added} == {"fincompress"}
    names = ("torch", "numpy", "transformers", "pandas")
    expected = [importlib.metadata.version(name) for name in names]
    program = f"import importlib.metadata as m; print(*(m.version(name) for name in {names}))"
    told = subprocess.run([colab.python, "-c", program], capture_output=True, text=True,
                          cwd=colab.place)
    assert told.stdout.split() == expected
    constraints = (colab.content/"constraints.txt").read_text()
    lines = constraints.splitlines()
    assert {f"{name}=={version}" for name, version in zip(names, expected)} <= {*lines}
    assert "fincompress" not in constraints


def test_the_first_cell_answers(first):
    "It installs and classifies; a copy without packaged models says so, and the study goes on."
    notebook, _, _ = first
    answer = text_of(code_cells(notebook)[0])
    if packaged_models():
        assert "'label': 'negative'" in answer
    else:
        assert "no packaged models" in answer


def test_the_form_reaches_the_run(first):
    _, run_dir, _ = first
    assert all(stage_file(run_dir, stage).exists() for stage in STAGES)
    record = read_json(run_dir/"run.json")
    assert record["profile"] == "smoke"
    assert record["overrides"] == ["vanilla_kd.temperature=3"]
    assert record["parameters"]["03_vanilla_kd"]["temperature"] == 3


def test_progress_is_shown(first):
    notebook, _, _ = first
    progress = text_of(cell_with(notebook, "for line in study.stdout"))
    assert all(f"{stage}: done" in progress for stage in STAGES)
    assert "epoch 1/1" in progress
    assert "report.html" in progress
    assert "\x1b" not in progress


def test_results_are_shown(first):
    "The tables, figures with alternative texts, and a model's answers."
    notebook, run_dir, _ = first
    results = text_of(cell_with(notebook, "run_details"))
    assert "| Teacher |" in results.replace("**", "")
    assert "'label':" in text_of(cell_with(notebook, "Classifier(folder)"))
    cell = cell_with(notebook, "figures = {")
    names = re.findall(r'(?m)^    "(\w+)": ', source_of(cell))
    there = [name for name in names if (run_dir/f"figures/{name}.png").exists()]
    figures = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert len(figures) == len(there) >= 4
    assert all(figure["metadata"]["image/png"]["alt"] for figure in figures)
    assert errors_in(notebook) == []


def test_what_is_downloaded(colab, first):
    "Drive is mounted once; the report and the model's folder are downloaded."
    _, _, noted = first
    (mounted, place), (_, report), (_, archive) = noted
    assert (mounted, place) == ("mount", str(colab.content/"drive"))
    assert Path(report).read_text().startswith("<!DOCTYPE html>")
    names = {*zipfile.ZipFile(archive).namelist()}
    assert {"compact_narrow/model.onnx", "compact_narrow/README.md"} <= names


def times(run_dir) -> dict:
    "When each file of a run was written."
    files = [path for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.stat().st_mtime_ns for path in files}


def test_after_a_disconnect_nothing_runs_again(colab, first):
    "A new kernel, the same form: every stage is up to date, and no file of the run is written."
    _, run_dir, _ = first
    before = times(run_dir)
    process, notebook = colab.run(**FORM)
    assert process.returncode == 0, process.errors[-3000:]
    assert "nothing was run" in text_of(cell_with(notebook, "for line in study.stdout"))
    assert "added: none" in text_of(cell_with(notebook, "def installed"))
    assert times(run_dir) == before


def test_a_wrong_value_stops_the_notebook(colab, first):
    "Not on Colab, without Drive: the command's own message, and no cell after it."
    process, notebook = colab.run(on_colab=False, profile="smoke", values="epochs=many",
                                  run_name="wrong")
    assert process.returncode != 0
    assert "epochs" in text_of(cell_with(notebook, "for line in study.stdout"))
    assert not (colab.content/"runs/wrong").exists()
    (error,) = errors_in(notebook)
    assert "the study stopped" in error["evalue"]


def test_the_notebook_itself():
    "It asks for a T4, tests skip its cells, and the form's own values are the recipe."
    notebook = read_json(NOTEBOOK)
    assert notebook["metadata"]["accelerator"] == "GPU"
    assert notebook["metadata"]["colab"]["gpuType"] == "T4"
    cells = [source_of(cell) for cell in code_cells(notebook)]
    assert all(source.startswith("#| stage\n") for source in cells)
    assert cells[0].count("#@param") == 3
    assert "Classifier()(sentence)" in cells[0]
    assert cells[1].count("#@param") == 5
    assert 'profile = "t4"' in cells[1]
    repository = "https://colab.research.google.com/github/fincompress/fincompress"
    assert f"{repository}/blob/main/nbs/colab.ipynb" in source_of(notebook["cells"][0])


def test_the_default_model_is_one_that_a_run_makes():
    form = source_of(code_cells(read_json(NOTEBOOK))[1])
    offered = re.search(r'variant = "(\w+)" #@param (\[.*?\])', form)
    assert offered[1] in json.loads(offered[2])
    recipe = "".join(source_of(cell) for cell in code_cells(read_json(ROOT/"nbs/09_compact.ipynb")))
    assert all(name.removeprefix("compact_") in recipe for name in json.loads(offered[2]))
