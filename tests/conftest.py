"""A small project in a temporary folder, whose three notebooks run as stages do; and a browser."""
import contextlib
import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from fincompress.app.web.browser import CHROMIUM_FLAGS, CHROMIUM_NAMES
from fincompress.app.web.web_folder import run_npm
from fincompress.lib.onnx.word_model import save_word_model

LONGEST = ("test_site", "test_colab") # they begin, so that no worker waits for them in the end


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONGEST)


STAGES = ("00_data", "01_teacher", "02_student")
IMPORTS = """import json, os, sys, time
from pathlib import Path
from fincompress.lib.run.stage import Stage
from fincompress.lib.run.files import RunError, write_json, write_text, read_json"""
DATA = [
    """run_dir = "outputs/t4" # the run directory
rows = 3 # lines of data
seed = 42 # of nothing""",
    IMPORTS,
    'stage = Stage("00_data", globals())',
    r"""write_text(stage.output("data/train.csv"), "line\n"*rows)
print(sys.executable)
print("a warning", file=sys.stderr)""",
    "stage.publish(rows=rows)",
]
TEACHER = [
    """run_dir = "outputs/t4" # the run directory
epochs = 2 # passes
learning_rate = 5e-5 # a number
seed = 42 # of nothing
limit = None # anything""",
    IMPORTS + """
HOW = os.environ.get("MISBEHAVE", "")
if HOW == "stray": stray = 1""",
    """stage = Stage("01_teacher", globals(), needs=["00_data"])
lines = stage.input("data/train.csv").read_text().count("line")""",
    r"""#| stage
# a training that can be cut off
state = stage.resume("teacher")
resumed = state.exists()
write_text(state, "half trained")
line = dict(name="teacher", epoch=1, epochs=epochs, step=4, steps=4, seconds=1.0, left=2.0,
            val_macro_f1=0.625)
with open(os.environ["FINCOMPRESS_PROGRESS"], "a") as file:
    file.write(json.dumps(line) + "\n")
if HOW == "pause":
    write_text(os.environ["MARKER"], str(os.getpid()))
    time.sleep(60)""",
    """#| stage
if HOW == "error": [][0]
if HOW == "explain": raise RunError("the label `bullish` is unknown: rename it")
if HOW == "die": os._exit(1)
if HOW == "leave": sys.exit(0)""",
    'write_json(stage.output("results/teacher.json"), {"lines": lines})',
    """if HOW != "silent":
    stage.publish(resumed=resumed)""",
]
STUDENT = [
    """run_dir = "outputs/t4" # the run directory
width = 4 # columns""",
    IMPORTS,
    'stage = Stage("02_student", globals(), needs=["01_teacher"])',
    """lines = read_json(stage.input("results/teacher.json"))["lines"]
write_json(stage.output("results/student.json"), {"lines": lines, "width": width})""",
    "stage.publish()",
]
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def code_cell(number, source, tags):
    return dict(cell_type="code", id=f"c{number}", metadata={"tags": tags} if tags else {},
                source=source, execution_count=None, outputs=[])


def notebook(sources, tag="parameters"):
    "A notebook's JSON; the first cell gets the tag."
    first = [tag] if tag else []
    cells = [code_cell(i, source, [] if i else first) for i, source in enumerate(sources)]
    return dict(cells=cells, metadata={"kernelspec": KERNEL}, nbformat=4, nbformat_minor=5)


NO_REPORT = "cli.report_file = lambda run: run"
COMMAND = f"""
import fincompress.app.cli as cli
cli.STAGES = {STAGES}
{NO_REPORT}
cli.main()"""


class Project:
    "The scratch project, and the command run in it."
    stages = STAGES

    def __init__(self, root):
        self.root = Path(root)
        self.run_dir = self.root/"outputs/mine"

    def write(self, stage, sources, tag="parameters"):
        "Write a stage's notebook."
        (self.root/f"nbs/{stage}.ipynb").write_text(json.dumps(notebook(sources, tag)))

    def profile(self, text, name="mine"):
        "Write a profile."
        (self.root/f"profiles/{name}.yaml").write_text(text)

    def record(self, stage):
        "What a stage published."
        return json.loads((self.run_dir/f"stages/{stage}.json").read_text())

    def study(self, *overrides, profile="mine", **options):
        "Run the stages in this process."
        from fincompress.app.study.pipeline import run_study
        return run_study(self.run_dir, profile, overrides, root=self.root, stages=STAGES,
                         **options)

    def words(self, *words, before="", real_report=False):
        "The command line of `fincompress` with the scratch project's stages."
        code = COMMAND.replace(NO_REPORT, "") if real_report else COMMAND
        return [sys.executable, "-c", before + code, *map(str, words)]

    def environment(self, **more):
        return {**os.environ, "FINCOMPRESS_ROOT": str(self.root), "COLUMNS": "120", **more}

    def command(self, *words, before="", real_report=False, **more):
        "Run the command in a process of its own."
        line = self.words(*words, before=before, real_report=real_report)
        return subprocess.run(line, cwd=self.root, env=self.environment(**more), text=True,
                              capture_output=True, timeout=180)


def make_project(root):
    project = Project(root)
    for folder in ("nbs", "profiles"):
        (project.root/folder).mkdir(parents=True)
    (project.root/"settings.ini").write_text("[DEFAULT]\n")
    project.profile("01_teacher:\n  epochs: 1\n")
    for stage, sources in zip(STAGES, (DATA, TEACHER, STUDENT)):
        project.write(stage, sources)
    return project


@pytest.fixture
def project(tmp_path):
    "The scratch project before any run."
    return make_project(tmp_path/"project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    "The project after a run, on a machine where `python3` is a kernel of another Python."
    folder = tmp_path_factory.mktemp("finished")
    project = make_project(folder/"project")
    other = folder/"jupyter/kernels/python3"
    other.mkdir(parents=True)
    spec = dict(argv=["false"], display_name="another Python", language="python")
    (other/"kernel.json").write_text(json.dumps(spec))
    project.home = folder/"home"
    project.home.mkdir()
    project.first = project.command("run", "-P", "mine", JUPYTER_PATH=str(folder/"jupyter"),
                                    HOME=str(project.home), MPLBACKEND="agg")
    assert project.first.returncode == 0, project.first.stderr
    return project


@pytest.fixture
def done(finished, tmp_path):
    "A copy of the finished project, to be changed."
    shutil.copytree(finished.root, tmp_path/"project")
    return Project(tmp_path/"project")


# The command in this process, and packages that are not there

HIDING = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        if name.partition(".")[0] not in {names}:
            return super().find_spec(name, *rest)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def without(*names):
    "Code that comes before the command and hides packages."
    return HIDING.format(names=names)


@pytest.fixture
def fincompress(monkeypatch, capsys):
    "The command with its words, in this process and 80 columns: its code, output and errors."
    from fincompress.app.cli import main
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words, given=""):
        monkeypatch.setattr(sys, "argv", ["fincompress", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return run


def contents(folder):
    "The files below a folder, with their bytes."
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    "The folder of a model that knows two words."
    folder = tmp_path_factory.mktemp("model")/"toy"
    save_word_model(folder, {"rose": (0, 0, 2), "fell": (2, 0, 0)})
    return folder


# Pages


@contextlib.contextmanager
def loopback(folder):
    "A server of a folder's files: its address, and the list of the paths asked for."
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture(scope="module")  # no longer: nothing else may run an event loop while it is open
def browser():
    "Chromium, which finds no machine but this one."
    found = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if not found:
        pytest.fail("pages are tested in a browser, and there is none: install chromium "
                    "(Debian, Ubuntu: apt-get install chromium)")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*CHROMIUM_FLAGS])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def npm(tmp_path_factory):
    "Pages with a model are built by npm: a machine that does not reach its registry skips them."
    asked = run_npm(tmp_path_factory.mktemp("npm"), "view", "onnxruntime-web", "name")
    if asked.returncode:
        pytest.skip("npm's registry cannot be reached from here")
