"""The pipeline on a project of three tiny notebooks.

Order, what runs again and why, stages left out, refusals, failures, kill and resume."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import DATA, STAGES, TEACHER

from fincompress.app.study import pipeline
from fincompress.app.study.parameters import stage_parameters
from fincompress.app.study.seeds import run_seeds
from fincompress.lib.run.files import RunError


def status(project, *overrides):
    parameters = stage_parameters(project.root, "mine", overrides, STAGES)
    return [pipeline.stage_status(project.run_dir, stage, parameters[stage], project.root)
            for stage in STAGES]


def tree(folder):
    "The bytes of every file below a folder."
    files = [p for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
        if not Path("/proc/self").exists():
            return True
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


# A first run


def test_all_stages_run_in_order_with_the_profiles_values(finished):
    lines = finished.first.stderr.splitlines()
    begun = [line.split()[1] for line in lines if "begun" in line]
    assert begun == [f"{stage}:" for stage in STAGES]
    used = {"epochs": 1, "learning_rate": 5e-5, "seed": 42, "limit": None}
    assert finished.record("01_teacher")["parameters"] == used
    student = json.loads((finished.run_dir/"results/student.json").read_text())
    assert student == {"lines": 3, "width": 4}


def test_run_record_says_with_what(finished):
    text = (finished.run_dir/"run.json").read_text()
    record = json.loads(text)
    assert record["profile"] == "mine" and record["seed"] == 42
    assert record["parameters"]["01_teacher"]["epochs"] == 1
    assert record["versions"]["python"] and record["hardware"]["cores"]
    assert record["started"] <= record["updated"]
    assert record["left_out"] == []
    assert str(finished.root) not in text


def test_kernel_is_this_python_and_the_home_stays_clean(finished):
    notebook = nbformat.read(finished.run_dir/"notebooks/00_data.ipynb", 4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sys.executable in [o.text.strip() for o in outputs if "text" in o]
    assert [p for p in finished.home.rglob("*") if ".cache" not in p.parts] == []


@pytest.mark.parametrize("stage", STAGES)
def test_stored_notebooks_hold_no_machine_path_and_no_warning(finished, stage):
    text = (finished.run_dir/f"notebooks/{stage}.ipynb").read_text()
    content = json.loads(text)
    streams = {o.get("name") for cell in content["cells"] for o in cell.get("outputs", [])}
    assert str(finished.root) not in text and "stderr" not in streams
    written = content["metadata"]["papermill"]["output_path"]
    assert written == f"outputs/mine/notebooks/{stage}.ipynb"
    assert not list((finished.run_dir/"unfinished").iterdir())


def test_a_folder_outside_the_project_with_braces_in_its_name(project, tmp_path):
    project.run_dir = tmp_path/"els{e}where"
    assert project.study(only=["data"]) == ["00_data"]
    assert (project.run_dir/"notebooks/00_data.ipynb").exists()


# What runs again


def test_nothing_runs_twice(done):
    before = tree(done.run_dir)
    events = []

    def note(event, **details):
        events.append((event, details["number"]))

    assert done.study(progress=note) == []
    assert tree(done.run_dir) == before
    assert events == [("skipped", 1), ("skipped", 2), ("skipped", 3)]


def test_a_parameter_reruns_its_stage_and_dependents_only_if_their_inputs_changed(done):
    assert status(done, "data.seed=7")[0] == ("stale", "parameter seed: 42 → 7")
    assert done.study("data.seed=7") == ["00_data"]  # the same bytes come out
    assert done.study("data.seed=7", "rows=5") == list(STAGES)
    assert json.loads((done.run_dir/"results/student.json").read_text())["lines"] == 5


def test_status_gives_the_reason(done):
    assert {s for s, _ in status(done)} == {"done"}
    (done.run_dir/"results/teacher.json").write_text("{}")
    assert status(done)[1:] == [("stale", "output results/teacher.json missing or changed"),
                                ("stale", "input results/teacher.json changed")]
    done.write("00_data", DATA + ["rows + 1"])
    assert status(done)[0] == ("stale", "source changed")
    done.write("00_data", DATA[:-1] + ["# a comment changes no result\n" + DATA[-1]])
    assert status(done)[0][0] == "done"
    (done.run_dir/"stages/02_student.json").unlink()
    assert status(done)[2] == ("missing", "not run yet")


def test_a_tampered_output_is_made_again(done):
    (done.run_dir/"data/train.csv").write_text("line\n"*99)
    assert done.study() == ["00_data"]
    assert (done.run_dir/"data/train.csv").read_text() == "line\n"*3


OUTSIDE = [
    'run_dir = "outputs/t4"\nwidth = 4',
    """from fincompress.lib.run.stage import Stage
from fincompress.lib.run.files import write_json""",
    """stage = Stage("02_student", globals())
size = stage.external("corpus.txt").stat().st_size
write_json(stage.output("results/size.json"), size)""",
    "stage.publish()",
]


def test_an_input_from_outside_counts(done):
    (done.root/"corpus.txt").write_text("as it was")
    done.write("02_student", OUTSIDE)
    assert done.study() == ["02_student"]
    assert status(done)[2][0] == "done"
    assert not (done.run_dir/"results/student.json").exists()
    (done.root/"corpus.txt").write_text("another")
    assert status(done)[2] == ("stale", "input corpus.txt changed")


def test_from_reruns_what_follows_and_only_considers_nothing_else(done):
    assert done.study(start="teacher") == ["01_teacher", "02_student"]
    assert done.study("rows=4", only=["02_student"]) == []
    assert done.study(only=["student"], force=True) == ["02_student"]


WRONG_CHOICES = [
    ("03_x", (), "unknown stage '03_x'"),
    (None, ["studnet"], "unknown stage 'studnet'"),
    ("data", ["data"], "exclude each other"),
]


@pytest.mark.parametrize("start, only, words", WRONG_CHOICES)
def test_wrong_choice_of_stages(project, start, only, words):
    with pytest.raises(RunError, match=words):
        project.study(start=start, only=only)
    assert not project.run_dir.exists()


# Stages left out


def test_a_profile_leaves_a_stage_out(project):
    project.profile("leave_out: [student]\n")
    places = []

    def note(event, **details):
        if event == "begun":
            places.append((details["stage"], details["number"], details["of"]))

    assert project.study(progress=note) == ["00_data", "01_teacher"]
    assert places == [("00_data", 1, 2), ("01_teacher", 2, 2)]
    assert not (project.run_dir/"stages/02_student.json").exists()
    assert json.loads((project.run_dir/"run.json").read_text())["left_out"] == ["02_student"]
    with pytest.raises(RunError, match="leaves out 02_student"):
        project.study(only=["student"])
    with pytest.raises(RunError, match="leaves out 02_student"):
        project.study(start="student")
    assert project.study() == []


WRONG_LISTS = [
    ("leave_out: [studnet]\n", "unknown stage in"),
    ("leave_out: student\n", "expected a list of stages"),
    ("leave_out: [1]\n", "expected a list of stages"),
    ("leave_out: {student: 1}\n", "expected a list of stages"),
    ("leave_out: [data, teacher, student]\n", "leaves out every stage"),
    ("leave_out: [teacher]\n", "leaves out 01_teacher, which 02_student needs"),
]


@pytest.mark.parametrize("content, words", WRONG_LISTS)
def test_wrong_stages_left_out_are_refused(project, content, words):
    project.profile(content)
    with pytest.raises(RunError) as refused:
        project.study()
    assert words in str(refused.value) and "mine" in str(refused.value)
    assert not project.run_dir.exists()


def test_the_published_study_is_no_profile(project):
    project.profile("variants: {teacher: {val_macro_f1: 0.9}}\n", "published")
    for name in ("published", str(project.root/"profiles/published.yaml")):
        with pytest.raises(RunError, match=r"unknown profile 'published' \(known: mine\)"):
            project.study(profile=name)


# Refused before anything runs


WRONG_VALUES = [
    ("epoch=3", "unknown parameter 'epoch', did you mean epochs"),
    ("techer.epochs=3",
     "unknown stage in -p techer.epochs=3: 'techer', did you mean 01_teacher?"),
    ("student.epochs=3", "unknown parameter of 02_student"),
    ("epochs=many", "expected a whole number, as in 2, and got text: 'many'"),
    ("epochs=true", "got true or false"),
    ("epochs=2.5", "got a number"),
    ("epochs=", "got nothing"),
    ("learning_rate=1e", "expected a number"),
    ("learning_rate=.nan", "no plain value"),
    ("limit={1: 2}", "no plain value"),
    ("limit=2025-01-01", "no plain value"),
    ("epochs", "write name=value"),
    ("epochs=[1", "not valid YAML"),
    ("run_dir=x", "--run-dir"),
]


@pytest.mark.parametrize("override, words", WRONG_VALUES)
def test_wrong_values_are_refused_before_anything_is_written(project, override, words):
    with pytest.raises(RunError) as refused:
        project.study(override)
    assert words in str(refused.value)
    assert not project.run_dir.exists()


def test_values_that_fit(project):
    texts = ["learning_rate=1e-4", "seed=1", "teacher.seed=2", "limit=[1, two]"]
    found = stage_parameters(project.root, "mine", texts, STAGES)
    assert found["00_data"] == {"rows": 3, "seed": 1}
    expected = {"epochs": 1, "learning_rate": 1e-4, "seed": 2, "limit": [1, "two"]}
    assert found["01_teacher"] == expected
    whole = stage_parameters(project.root, "mine", ["learning_rate=1"], STAGES)
    assert type(whole["01_teacher"]["learning_rate"]) is float


WRONG_PROFILES = [
    ("01_teacher:\n  epochs: [1\n02_student:\n", "line 3"),
    ("01_teacher:\n  epochs: many\n", "own.yaml: 01_teacher.epochs: expected a whole number"),
    ("- epochs\n", "expected `stage:`"),
    ("01_teacher: 3\n", "expected `stage:`"),
    ("teacherr:\n  epochs: 1\n", "unknown stage"),
    ("01_teacher:\n  epoch: 1\n", "did you mean epochs"),
    (b"\xff", "cannot be read"),
]


@pytest.mark.parametrize("content, words", WRONG_PROFILES)
def test_wrong_profiles(project, content, words):
    own = project.root/"own.yaml"
    own.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError) as refused:
        project.study(profile=str(own))
    assert words in str(refused.value) and "own.yaml" in str(refused.value)
    assert not project.run_dir.exists()


def test_unknown_profile_lists_those_there_are(project):
    words = r"unknown profile 'mien', did you mean mine\? \(known: mine\)"
    with pytest.raises(RunError, match=words):
        project.study(profile="mien")
    with pytest.raises(RunError, match="does not exist"):
        project.study(profile="nowhere.yaml")


WRONG_NOTEBOOKS = [
    (TEACHER, None, "0 cells tagged `parameters`"),
    (["# nothing"], "parameters", "no parameter run_dir"),
    (["epochs = 3"], "parameters", "no parameter run_dir"),
    (['run_dir = "x"\na = b = 1'], "parameters", "line 2"),
    (['run_dir = "x"\nEpochs = 1'], "parameters", "line 2"),
    (['run_dir = "x"\nsteps = 3*run_dir'], "parameters", "line 2"),
]


@pytest.mark.parametrize("sources, tag, words", WRONG_NOTEBOOKS)
def test_notebooks_that_cannot_be_given_values(project, sources, tag, words):
    project.write("01_teacher", sources, tag)
    with pytest.raises(RunError) as refused:
        project.study()
    assert words in str(refused.value) and "01_teacher.ipynb" in str(refused.value)
    assert not project.run_dir.exists()


OLD_FILES = ("checkpoints/student_wide_int8/config.json", "checkpoints/student_narrow/config.json",
             "results/peers.csv")


@pytest.mark.parametrize("old", OLD_FILES)
def test_a_run_of_an_earlier_version_is_refused_and_stays_as_it_is(project, old):
    file = project.run_dir/old
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    before = tree(project.run_dir)
    with pytest.raises(RunError, match="earlier version") as refused:
        project.study()
    assert "fincompress run" in str(refused.value)
    assert tree(project.run_dir) == before


# Failures


FAILURES = [
    ("error", 'failed in cell 6 (`if HOW == "error": [][0]`): IndexError: list index out of range'),
    ("explain", "): the label `bullish` is unknown: rename it\n"),
    ("die", 'failed in cell 6 (`if HOW == "error": [][0]`): the kernel died'),
    ("leave", "failed in cell 6"),
    ("silent", "published nothing"),
    ("stray", "parameter stray"),
]


@pytest.mark.parametrize("how, words", FAILURES)
def test_a_failure_names_stage_cell_and_error_and_keeps_the_rest(done, monkeypatch, how, words):
    monkeypatch.setenv("MISBEHAVE", how)
    before = tree(done.run_dir)
    with pytest.raises(RunError) as failed:
        done.study(start="teacher")
    message = str(failed.value)
    assert words in message and message.startswith("01_teacher")
    partial = done.run_dir/"unfinished/01_teacher.ipynb"
    assert partial.exists()
    assert how in ("silent", "stray") or str(partial) in message
    changed = {path for path, value in tree(done.run_dir).items() if before.get(path) != value}
    changed = {path for path in changed if not path.startswith("unfinished/")}
    published = {"stages/01_teacher.json"} if how == "stray" else set()
    assert changed <= {"run.json"} | published


def test_after_a_failure_the_earlier_results_still_count(done, monkeypatch):
    monkeypatch.setenv("MISBEHAVE", "error")
    with pytest.raises(RunError):
        done.study("epochs=5")
    monkeypatch.delenv("MISBEHAVE")
    assert done.study() == []
    # a failed attempt does not pass for the executed notebook
    assert (done.run_dir/"unfinished/01_teacher.ipynb").exists()


@pytest.mark.parametrize("place", ["file", "below a file", "/proc/nowhere", "read-only"])
def test_a_run_directory_that_cannot_be_used(project, tmp_path, place):
    (tmp_path/"file").write_text("")
    (tmp_path/"closed").mkdir(mode=0o500)
    places = {"file": "file", "below a file": "file/run", "read-only": "closed"}
    project.run_dir = tmp_path/places.get(place, place)
    if place == "read-only" and os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    with pytest.raises(RunError, match="--run-dir"):
        project.study()


def test_a_full_disk_is_one_message(project, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "write_json", full)
    with pytest.raises(RunError, match="No space left on device"):
        project.study()


def test_one_process_a_run_directory(project):
    with pipeline.locked_run(project.run_dir):
        with pytest.raises(RunError, match="another process is working"):
            project.study()


# Cut off


HEED = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


def start_and_pause(project, tmp_path):
    "A run in another process, in the middle of the second stage, and its kernel's pid."
    marker = tmp_path/"marker"
    for stage in STAGES[1:]:
        (project.run_dir/f"stages/{stage}.json").unlink()
    words = project.words("run", "-P", "mine", before=HEED)  # a background job ignores SIGINT
    environment = project.environment(MISBEHAVE="pause", MARKER=str(marker))
    process = subprocess.Popen(words, cwd=project.root, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(marker.exists)
    return process, int(marker.read_text())


def test_killed_in_the_middle_it_goes_on_where_it_was(done, tmp_path):
    process, kernel = start_and_pause(done, tmp_path)
    process.kill()
    process.communicate()
    wait_until(lambda: not is_running(kernel))
    assert [state for state, _ in status(done)] == ["done", "missing", "missing"]
    assert done.study(only=["data", "teacher"]) == ["01_teacher"]
    assert done.record("01_teacher")["summary"] == {"resumed": True}


def test_interrupted_it_stops_the_kernel_and_says_so(done, tmp_path):
    process, kernel = start_and_pause(done, tmp_path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors and "Traceback" not in errors
    wait_until(lambda: not is_running(kernel), 15)
    assert (done.run_dir/"unfinished/01_teacher.ipynb").exists()


def test_killed_after_publishing_the_notebook_is_still_stored(done):
    place = done.run_dir/"notebooks/02_student.ipynb"
    partial = done.run_dir/"unfinished/02_student.ipynb"
    notebook = nbformat.read(place, 4)
    notebook.cells[-1].metadata.papermill.status = "running"
    nbformat.write(notebook, partial)
    place.unlink()
    assert done.study() == [] and not partial.exists()
    assert nbformat.read(place, 4).cells[-1].metadata.papermill.status == "completed"
    place.rename(partial)
    partial.write_text(partial.read_text()[:200])  # killed while it was written
    assert done.study() == [] and not place.exists()


# Several seeds


def test_further_seeds_run_in_folders_of_their_own(project):
    further = "further_seeds:\n  seeds: [43]\n  teacher: {epochs: 2}\n"
    project.profile("01_teacher:\n  epochs: 1\n" + further)

    def run(seeds, *overrides):
        return run_seeds(project.run_dir, project.root, "mine", overrides, seeds, stages=STAGES)

    executed = run([44], "learning_rate=1e-3")
    assert executed == {43: list(STAGES), 44: list(STAGES)}
    for seed in executed:
        folder = project.run_dir/f"seeds/{seed}/stages"
        teacher = json.loads((folder/"01_teacher.json").read_text())["parameters"]
        assert teacher == {"epochs": 2, "learning_rate": 1e-3, "seed": seed, "limit": None}
        data = json.loads((folder/"00_data.json").read_text())["parameters"]
        assert data["seed"] == 42  # the data stay as they are
    assert run([44], "learning_rate=1e-3") == {43: [], 44: []}
    with pytest.raises(RunError, match="seed 42 is the run's own"):
        run([42])
