"""A small project in a temporary folder, three notebooks of a few lines, which run as stages of a study do; and a browser."""
import contextlib, functools, http.server, json, os, shutil, subprocess, sys, threading
from pathlib import Path
import pytest

STAGES = ("00_data", "01_teacher", "02_student")
IMPORTS = "import json, os, sys, time\nfrom pathlib import Path\nfrom fincompress.lib.run.stage import Stage\nfrom fincompress.lib.run.files import RunError, write_json, write_text, read_json"
DATA = ['run_dir = "outputs/t4" # the run directory\nrows = 3 # lines of data\nseed = 42 # of nothing', IMPORTS, 'stage = Stage("00_data", globals())',
        'write_text(stage.output("data/train.csv"), "line\\n"*rows)\nprint(sys.executable)\nprint("a warning", file=sys.stderr)', "stage.publish(rows=rows)"]
TEACHER = ['run_dir = "outputs/t4" # the run directory\nepochs = 2 # passes\nlearning_rate = 5e-5 # a number\nseed = 42 # of nothing\nlimit = None # anything',
           IMPORTS + '\nHOW = os.environ.get("MISBEHAVE", "")\nif HOW == "stray": stray = 1',
           'stage = Stage("01_teacher", globals(), needs=["00_data"])\nlines = stage.input("data/train.csv").read_text().count("line")',
           '#| stage\n# a training that can be cut off\nstate = stage.resume("teacher")\nresumed = state.exists()\nwrite_text(state, "half trained")\n'
           'line = dict(name="teacher", epoch=1, epochs=epochs, step=4, steps=4, seconds=1.0, left=2.0, val_macro_f1=0.625)\n'
           'with open(os.environ["FINCOMPRESS_PROGRESS"], "a") as file: file.write(json.dumps(line) + "\\n")\n'
           'if HOW == "pause": write_text(os.environ["MARKER"], str(os.getpid())); time.sleep(60)',
           '#| stage\nif HOW == "error": [][0]\nif HOW == "explain": raise RunError("the label `bullish` is unknown: rename it")\nif HOW == "die": os._exit(1)\nif HOW == "leave": sys.exit(0)',
           'write_json(stage.output("results/teacher.json"), {"lines": lines})',
           'if HOW != "silent": stage.publish(resumed=resumed)']
STUDENT = ['run_dir = "outputs/t4" # the run directory\nwidth = 4 # columns', IMPORTS, 'stage = Stage("02_student", globals(), needs=["01_teacher"])',
           'write_json(stage.output("results/student.json"), {"lines": read_json(stage.input("results/teacher.json"))["lines"], "width": width})', "stage.publish()"]

def notebook(sources, tag="parameters"):
    "A notebook's JSON; the first cell gets the tag."
    def cell(i, source): return dict(cell_type="code", id=f"c{i}", metadata={"tags": [tag]} if i == 0 and tag else {}, source=source, execution_count=None, outputs=[])
    return dict(cells=[cell(i, s) for i, s in enumerate(sources)], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}, nbformat=4, nbformat_minor=5)

class Project:
    "The scratch project, and the command run in it."
    stages = STAGES
    def __init__(self, root): self.root, self.run_dir = Path(root), Path(root)/"outputs/mine"
    def write(self, stage, sources, tag="parameters"): (self.root/f"nbs/{stage}.ipynb").write_text(json.dumps(notebook(sources, tag)))
    def record(self, stage): return json.loads((self.run_dir/f"stages/{stage}.json").read_text())
    def study(self, *overrides, profile="mine", **options):
        from fincompress.app.study.pipeline import run_study
        return run_study(self.run_dir, profile, overrides, root=self.root, stages=STAGES, **options)
    def words(self, *words, before=""):
        return [sys.executable, "-c", f"{before}\nimport fincompress.app.cli as cli\ncli.STAGES = {STAGES}\ncli.report_file = lambda run: run\ncli.main()", *map(str, words)]
    def environment(self, **more): return {**os.environ, "FINCOMPRESS_ROOT": str(self.root), "COLUMNS": "120", **more}
    def command(self, *words, before="", **more):
        return subprocess.run(self.words(*words, before=before), cwd=self.root, env=self.environment(**more), capture_output=True, text=True, timeout=60)

def make_project(root):
    project = Project(root)
    for folder in ("nbs", "profiles"): (project.root/folder).mkdir(parents=True)
    (project.root/"settings.ini").write_text("[DEFAULT]\n")
    (project.root/"profiles/mine.yaml").write_text("01_teacher:\n  epochs: 1\n")
    for stage, sources in zip(STAGES, (DATA, TEACHER, STUDENT)): project.write(stage, sources)
    return project

@pytest.fixture
def project(tmp_path): # nothing has run
    return make_project(tmp_path/"project")

@pytest.fixture(scope="session")
def finished(tmp_path_factory): # everything has run once, on a machine where "python3" is a kernel of somebody else
    folder = tmp_path_factory.mktemp("finished")
    project, other = make_project(folder/"project"), folder/"jupyter/kernels/python3"
    other.mkdir(parents=True)
    (other/"kernel.json").write_text(json.dumps(dict(argv=["false"], display_name="another Python", language="python")))
    (folder/"home").mkdir()
    project.first = project.command("run", "-P", "mine", JUPYTER_PATH=str(folder/"jupyter"), HOME=str(folder/"home"), MPLBACKEND="agg")
    project.home = folder/"home"
    assert project.first.returncode == 0, project.first.stderr
    return project

@pytest.fixture
def done(finished, tmp_path): # a copy of the finished project, to be changed
    shutil.copytree(finished.root, tmp_path/"project")
    return Project(tmp_path/"project")

# Pages

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]

@contextlib.contextmanager
def loopback(folder): # → (address, list of the paths asked for)
    "A server of a folder's files."
    asked = []
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words): asked.append(self.path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()

@pytest.fixture(scope="module") # no longer: while it is open, nothing else in this process may run an event loop
def browser():
    "Chromium, which finds no machine but this one."
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not found: pytest.fail("pages are tested in a browser, and there is none: install chromium (Debian, Ubuntu: apt-get install chromium)")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()
