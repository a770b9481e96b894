"""The notebook for Colab, where Colab is simulated: its module, an environment that has its packages, another folder, the form filled in."""
import importlib.metadata, json, os, re, shutil, signal, subprocess, sys, sysconfig, venv, zipfile
from pathlib import Path

import pytest

from fincompress.lib.run.stage import STAGES, stage_file
from fincompress.lib.run.files import read_json

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT/"nbs/colab.ipynb"
MOUNT = "def mount(place): noted('mount', place); os.makedirs(place + '/MyDrive', exist_ok=True)\n"
COLAB = {"__init__.py": "", "drive.py": MOUNT, "files.py": "def download(path): noted('download', path)\n"}
NOTED = "import json, os\ndef noted(*what):\n    with open(os.environ['NOTED'], 'a') as file: file.write(json.dumps(what) + '\\n')\n"
DRIVER = """
import sys, nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
source, target, folder = sys.argv[1:]
notebook = nbformat.read(source, 4)
manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[])) # the kernel of this environment
try: NotebookClient(notebook, km=manager, timeout=None, resources=dict(metadata=dict(path=folder))).execute()
finally: nbformat.write(notebook, target)
"""


def code_cells(notebook): return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def filled(notebook: dict, **fields) -> dict:
    "The notebook with its form filled in: a field's line gets another value, as Colab does it."
    for name, value in fields.items():
        form = code_cells(notebook)[0]
        source, count = re.subn(rf"(?m)^{name} = .*?(?= #@param)", lambda _: f"{name} = {value!r}", "".join(form["source"]))
        assert count == 1, f"the form has {count} fields {name}"
        form["source"] = source
    return notebook


class Colab:
    "A runtime: a folder to start in, a Python with the packages of this one, google.colab, and the address of a repository."
    def __init__(self, place: Path):
        self.place, self.content, self.python = place, place/"content", place/"venv/bin/python"
        for folder in ("content", "home", "module/google/colab"): (place/folder).mkdir(parents=True)
        for name, text in COLAB.items(): (place/"module/google/colab"/name).write_text(text and NOTED + text)
        venv.create(place/"venv", with_pip=False)
        (site,) = (place/"venv/lib").glob("python*/site-packages")
        (site/"packages_of_colab.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        (place/"venv/share").symlink_to(Path(sysconfig.get_path("data"))/"share") # what packages keep beside their modules
        self.site, self.repository = site, place/"repository"
        left_out = shutil.ignore_patterns(".git", ".venv", "outputs", "tests", "__pycache__", "*.egg-info", "_site", ".pytest_cache")
        shutil.copytree(ROOT, self.repository, ignore=left_out)
        author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        for words in (["init", "-q", "-b", "main"], ["add", "-A"], [*author, "commit", "-q", "-m", "all"]):
            subprocess.run(["git", "-C", self.repository, *words], check=True)

    def run(self, on_colab=True, **fields):
        "Execute the notebook in a new kernel; the process, and the notebook as executed."
        source, target = self.place/"filled.ipynb", self.place/"executed.ipynb"
        source.write_text(json.dumps(filled(read_json(NOTEBOOK), repository=str(self.repository), **fields)))
        others = "PIP_", "PYTHON", "FINCOMPRESS", "JUPYTER", "HF_", "IPYTHON", "VIRTUAL_ENV"
        environs = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        environs |= dict(PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", MPLBACKEND="agg", COLUMNS="150")
        environs |= dict(HOME=str(self.place/"home"), PATH=f"{self.python.parent}:{os.environ['PATH']}", NOTED=str(self.place/"noted.jsonl"))
        if on_colab: environs["PYTHONPATH"] = str(self.place/"module")
        words = [self.python, "-c", DRIVER, source, target, self.content]
        process = subprocess.Popen(words, env=environs, cwd=self.place, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try: _, process.errors = process.communicate(timeout=3000)
        finally:
            if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
        return process, read_json(target)

    def noted(self): return [json.loads(line) for line in (self.place/"noted.jsonl").read_text().splitlines()]


def text_of(cell) -> str:
    "All that a cell printed and showed as text."
    found = [output.get("data", {}) | {"printed": output.get("text", "")} for output in cell["outputs"]]
    return "".join("".join(each.get(kind, "")) for each in found for kind in ("printed", "text/plain", "text/markdown"))


def cell_with(notebook, words): return next(cell for cell in code_cells(notebook) if words in "".join(cell["source"]))


@pytest.fixture(scope="module")
def colab(tmp_path_factory): return Colab(tmp_path_factory.mktemp("colab"))


@pytest.fixture(scope="module")
def first(colab):
    "The smoke study from an empty runtime, on the simulated Drive, with a value of one's own."
    process, notebook = colab.run(profile="smoke", values="vanilla_kd.temperature=3", use_drive=True, variant="student_narrow_int8")
    assert process.returncode == 0, process.errors[-3000:]
    return notebook, colab.content/"drive/MyDrive/FinCompress/colab", colab.noted()


def test_what_is_there_stays_as_it_is(colab, first):
    "Installing adds this project and nothing else, and changes no package's version."
    assert "packages were here and are as they were" in text_of(cell_with(first[0], "def installed"))
    assert {d.name.lower() for d in importlib.metadata.distributions(path=[str(colab.site)])} == {"fincompress"}
    names = "torch", "numpy", "transformers", "pandas"
    program = f"import importlib.metadata as m; print(*(m.version(name) for name in {names}))"
    told = subprocess.run([colab.python, "-c", program], capture_output=True, text=True, cwd=colab.place)
    assert told.stdout.split() == [importlib.metadata.version(name) for name in names]
    held = (colab.content/"held.txt").read_text()
    assert all(f"\n{name}=={importlib.metadata.version(name)}\n" in f"\n{held}\n" for name in names) and "fincompress" not in held


def test_the_form_reaches_the_run(first):
    _, run_dir, _ = first
    assert all(stage_file(run_dir, stage).exists() for stage in STAGES)
    record = read_json(run_dir/"run.json")
    assert record["profile"] == "smoke" and record["overrides"] == ["vanilla_kd.temperature=3"]
    assert record["parameters"]["03_vanilla_kd"]["temperature"] == 3


def test_what_a_person_sees(first):
    "Progress while it runs, the table, plots with alternative texts, and a model's answers."
    notebook, run_dir, _ = first
    progress = text_of(cell_with(notebook, "for line in study.stdout"))
    assert all(f"{stage}: done" in progress for stage in STAGES) and "epoch 1/1" in progress and "report.html" in progress and "\x1b" not in progress
    assert "| teacher |" in text_of(cell_with(notebook, "run_details")).replace("**", "")
    assert "'label':" in text_of(cell_with(notebook, "Classifier(folder)"))
    (figures,) = ("".join(output["data"]["text/html"]) for output in cell_with(notebook, "def picture")["outputs"])
    assert len(re.findall(r'<img [^>]*alt="[^"]+" src="data:image/png;base64,', figures)) == 5
    assert not [output for cell in code_cells(notebook) for output in cell["outputs"] if output["output_type"] == "error"]



def test_what_a_person_gets(colab, first):
    "Drive is mounted once, and the report and the model's folder are downloaded."
    (mount, place), (_, report), (_, archive) = first[2]
    assert (mount, place) == ("mount", str(colab.content/"drive")) and Path(report).read_text().startswith("<!DOCTYPE html>")
    assert {"student_narrow_int8/model.onnx", "student_narrow_int8/README.md"} <= {*zipfile.ZipFile(archive).namelist()}


def test_after_a_disconnect_nothing_runs_again(colab, first):
    "A new kernel, the same form: every stage is up to date, and no file of the run is written."
    run_dir = first[1]
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"}
    process, notebook = colab.run(profile="smoke", values="vanilla_kd.temperature=3", use_drive=True, variant="student_narrow_int8")
    assert process.returncode == 0, process.errors[-3000:]
    assert "nothing was run" in text_of(cell_with(notebook, "for line in study.stdout")) and "added: none" in text_of(cell_with(notebook, "def installed"))
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"} == before


def test_a_wrong_value_stops_the_notebook(colab, first):
    "Elsewhere than on Colab, without Drive: the command's own message, and no cell after it."
    process, notebook = colab.run(on_colab=False, profile="smoke", values="epochs=many", run_name="wrong")
    assert process.returncode != 0 and "epochs" in text_of(cell_with(notebook, "for line in study.stdout")) and not (colab.content/"runs/wrong").exists()
    (error,) = [output for cell in code_cells(notebook) for output in cell["outputs"] if output["output_type"] == "error"]
    assert "the study stopped" in error["evalue"]


def test_the_notebook_itself():
    "It asks Colab for a T4, its cells are none that the notebooks' tests run, and the form's own values are the recipe."
    notebook = read_json(NOTEBOOK)
    assert notebook["metadata"]["accelerator"] == "GPU" and notebook["metadata"]["colab"]["gpuType"] == "T4"
    cells = ["".join(cell["source"]) for cell in code_cells(notebook)]
    assert all(source.startswith("#| stage\n") for source in cells) and cells[0].count("#@param") == 7
    badge = "https://colab.research.google.com/github/fincompress/fincompress/blob/main/nbs/colab.ipynb"
    assert 'profile = "t4"' in cells[0] and badge in "".join(notebook["cells"][0]["source"])
