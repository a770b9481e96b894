"""The pipeline on a project of three tiny notebooks: order, what runs again and why, refusals, failures, kill and resume."""
import json, os, signal, subprocess, sys, time
from pathlib import Path
import nbformat, pytest
from fincompress.app.study import pipeline
from fincompress.app.study.parameters import stage_parameters
from fincompress.app.study.seeds import run_seeds
from fincompress.lib.run.files import RunError
from conftest import DATA, STAGES, TEACHER

def status(project, *overrides):
    parameters = stage_parameters(project.root, "mine", overrides, STAGES)
    return [pipeline.stage_status(project.run_dir, stage, parameters[stage], project.root) for stage in STAGES]

def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock"}

def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)

def is_running(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc/self").exists() else True

# ---- a first run

def test_all_stages_run_in_order_with_the_profiles_values(finished):
    begun = [line.split()[1] for line in finished.first.stderr.splitlines() if "begun" in line]
    assert begun == [f"{stage}:" for stage in STAGES]
    assert finished.record("01_teacher")["parameters"] == {"epochs": 1, "learning_rate": 5e-5, "seed": 42, "limit": None}
    assert json.loads((finished.run_dir/"results/student.json").read_text()) == {"lines": 3, "width": 4}

def test_run_record_says_with_what(finished):
    text = (finished.run_dir/"run.json").read_text()
    record = json.loads(text)
    assert record["profile"] == "mine" and record["seed"] == 42 and record["parameters"]["01_teacher"]["epochs"] == 1
    assert record["versions"]["python"] and record["hardware"]["cores"] and record["started"] <= record["updated"]
    assert str(finished.root) not in text

def test_kernel_is_this_python_and_the_home_stays_clean(finished):
    notebook = nbformat.read(finished.run_dir/"notebooks/00_data.ipynb", 4)
    assert sys.executable in [o.text.strip() for c in notebook.cells for o in c.get("outputs", []) if "text" in o]
    assert [p for p in finished.home.rglob("*") if ".cache" not in p.parts] == []

def test_stored_notebooks_hold_no_machine_path_and_no_warning(finished):
    for stage in STAGES:
        text = (finished.run_dir/f"notebooks/{stage}.ipynb").read_text()
        assert str(finished.root) not in text and "stderr" not in {o.get("name") for c in json.loads(text)["cells"] for o in c.get("outputs", [])}
        assert json.loads(text)["metadata"]["papermill"]["output_path"] == f"outputs/mine/notebooks/{stage}.ipynb"
    assert not list((finished.run_dir/"unfinished").iterdir())

def test_a_folder_outside_the_project_with_braces_in_its_name(project, tmp_path):
    project.run_dir = tmp_path/"els{e}where"
    assert project.study(only=["data"]) == ["00_data"]
    assert (project.run_dir/"notebooks/00_data.ipynb").exists()

# ---- what runs again

def test_nothing_runs_twice(done):
    before, events = tree(done.run_dir), []
    assert done.study(progress=lambda event, **details: events.append((event, details["number"]))) == []
    assert tree(done.run_dir) == before and events == [("skipped", 1), ("skipped", 2), ("skipped", 3)]

def test_a_parameter_reruns_its_stage_and_dependents_only_if_their_inputs_changed(done):
    assert status(done, "data.seed=7")[0] == ("stale", "parameter seed: 42 → 7")
    assert done.study("data.seed=7") == ["00_data"]          # the same bytes come out
    assert done.study("data.seed=7", "rows=5") == list(STAGES)
    assert json.loads((done.run_dir/"results/student.json").read_text())["lines"] == 5

def test_status_gives_the_reason(done):
    assert {s for s, _ in status(done)} == {"done"}
    (done.run_dir/"results/teacher.json").write_text("{}")
    assert status(done)[1:] == [("stale", "output results/teacher.json missing or changed"), ("stale", "input results/teacher.json changed")]
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

def test_an_input_from_outside_counts(done):
    (done.root/"corpus.txt").write_text("as it was")
    done.write("02_student", ['run_dir = "outputs/t4"\nwidth = 4', "from fincompress.lib.run.stage import Stage\nfrom fincompress.lib.run.files import write_json",
                             'stage = Stage("02_student", globals())\nwrite_json(stage.output("results/size.json"), stage.external("corpus.txt").stat().st_size)', "stage.publish()"])
    assert done.study() == ["02_student"]
    assert status(done)[2][0] == "done" and not (done.run_dir/"results/student.json").exists()
    (done.root/"corpus.txt").write_text("another")
    assert status(done)[2] == ("stale", "input corpus.txt changed")

def test_from_reruns_what_follows_and_only_considers_nothing_else(done):
    assert done.study(start="teacher") == ["01_teacher", "02_student"]
    assert done.study("rows=4", only=["02_student"]) == []
    assert done.study(only=["student"], force=True) == ["02_student"]

@pytest.mark.parametrize("start, only, words", [("03_x", (), "unknown stage '03_x'"), (None, ["studnet"], "unknown stage 'studnet'"), ("data", ["data"], "exclude each other")])
def test_wrong_choice_of_stages(project, start, only, words):
    with pytest.raises(RunError, match=words): project.study(start=start, only=only)
    assert not project.run_dir.exists()

# ---- refused before anything runs

@pytest.mark.parametrize("override, words", [
    ("epoch=3", "unknown parameter 'epoch', did you mean epochs"), ("techer.epochs=3", "unknown stage in -p techer.epochs=3: 'techer', did you mean 01_teacher?"), ("student.epochs=3", "unknown parameter of 02_student"),
    ("epochs=many", "expected a whole number, as in 2, and got text: 'many'"), ("epochs=true", "got true or false"), ("epochs=2.5", "got a number"), ("epochs=", "got nothing"),
    ("learning_rate=1e", "expected a number"), ("learning_rate=.nan", "no plain value"), ("limit={1: 2}", "no plain value"), ("limit=2025-01-01", "no plain value"),
    ("epochs", "write name=value"), ("epochs=[1", "not valid YAML"), ("run_dir=x", "--run-dir")])
def test_wrong_values_are_refused_before_anything_is_written(project, override, words):
    with pytest.raises(RunError) as refused: project.study(override)
    assert words in str(refused.value)
    assert not project.run_dir.exists()

def test_values_that_fit(project):
    found = stage_parameters(project.root, "mine", ["learning_rate=1e-4", "seed=1", "teacher.seed=2", "limit=[1, two]"], STAGES)
    assert found["00_data"] == {"rows": 3, "seed": 1}
    assert found["01_teacher"] == {"epochs": 1, "learning_rate": 1e-4, "seed": 2, "limit": [1, "two"]}
    assert type(stage_parameters(project.root, "mine", ["learning_rate=1"], STAGES)["01_teacher"]["learning_rate"]) is float

@pytest.mark.parametrize("content, words", [
    ("01_teacher:\n  epochs: [1\n02_student:\n", "line 3"), ("01_teacher:\n  epochs: many\n", "own.yaml: 01_teacher.epochs: expected a whole number"), ("- epochs\n", "expected `stage:`"),
    ("01_teacher: 3\n", "expected `stage:`"), ("teacherr:\n  epochs: 1\n", "unknown stage"), ("01_teacher:\n  epoch: 1\n", "did you mean epochs"), (b"\xff", "cannot be read")])
def test_wrong_profiles(project, content, words):
    own = project.root/"own.yaml"
    own.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError) as refused: project.study(profile=str(own))
    assert words in str(refused.value) and "own.yaml" in str(refused.value) and not project.run_dir.exists()

def test_unknown_profile_lists_those_there_are(project):
    with pytest.raises(RunError, match=r"unknown profile 'mien', did you mean mine\? \(known: mine\)"): project.study(profile="mien")
    with pytest.raises(RunError, match="does not exist"): project.study(profile="nowhere.yaml")

@pytest.mark.parametrize("sources, tag, words", [
    (TEACHER, None, "0 cells tagged `parameters`"), (["# nothing"], "parameters", "no parameter run_dir"), (["epochs = 3"], "parameters", "no parameter run_dir"),
    (['run_dir = "x"\na = b = 1'], "parameters", "line 2"), (['run_dir = "x"\nEpochs = 1'], "parameters", "line 2"), (['run_dir = "x"\nsteps = 3*run_dir'], "parameters", "line 2")])
def test_notebooks_that_cannot_be_given_values(project, sources, tag, words):
    project.write("01_teacher", sources, tag)
    with pytest.raises(RunError) as refused: project.study()
    assert words in str(refused.value) and "01_teacher.ipynb" in str(refused.value) and not project.run_dir.exists()

# ---- failures

@pytest.mark.parametrize("how, words", [
    ("error", 'failed in cell 6 (`if HOW == "error": [][0]`): IndexError: list index out of range'), ("explain", "): the label `bullish` is unknown: rename it\n"),
    ("die", 'failed in cell 6 (`if HOW == "error": [][0]`): the kernel died'), ("leave", "failed in cell 6"), ("silent", "published nothing"), ("stray", "parameter stray")])
def test_a_failure_names_stage_cell_and_error_and_keeps_the_rest(done, monkeypatch, how, words):
    monkeypatch.setenv("MISBEHAVE", how)
    before = tree(done.run_dir)
    with pytest.raises(RunError) as failed: done.study(start="teacher")
    assert words in str(failed.value) and str(failed.value).startswith("01_teacher")
    partial = done.run_dir/"unfinished/01_teacher.ipynb"
    assert partial.exists() and (how in ("silent", "stray") or str(partial) in str(failed.value))
    changed = {path for path, value in tree(done.run_dir).items() if before.get(path) != value and not path.startswith("unfinished/")}
    assert changed <= ({"run.json", "stages/01_teacher.json"} if how == "stray" else {"run.json"})

def test_after_a_failure_the_earlier_results_still_count(done, monkeypatch):
    monkeypatch.setenv("MISBEHAVE", "error")
    with pytest.raises(RunError): done.study("epochs=5")
    monkeypatch.delenv("MISBEHAVE")
    assert done.study() == []
    assert (done.run_dir/"unfinished/01_teacher.ipynb").exists()   # a failed attempt does not pass for the executed notebook

@pytest.mark.parametrize("place", ["file", "below a file", "/proc/nowhere", "read-only"])
def test_a_run_directory_that_cannot_be_used(project, tmp_path, place):
    (tmp_path/"file").write_text("")
    (tmp_path/"closed").mkdir(mode=0o500)
    project.run_dir = {"file": tmp_path/"file", "below a file": tmp_path/"file/run", "read-only": tmp_path/"closed"}.get(place, Path(place))
    if place == "read-only" and os.geteuid() == 0: pytest.skip("root writes everywhere")
    if place.startswith("/proc") and not Path("/proc/self").exists(): pytest.skip("no /proc here")
    with pytest.raises(RunError, match="--run-dir"): project.study()

def test_a_full_disk_is_one_message(project, monkeypatch):
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(pipeline, "write_json", full)
    with pytest.raises(RunError, match="No space left on device"): project.study()

def test_one_process_a_run_directory(project):
    with pipeline.locked(project.run_dir), pytest.raises(RunError, match="another process is working"): project.study()

# ---- cut off

def start_and_pause(project, tmp_path):
    "A run in another process that has reached the middle of the second stage, and the pid of its kernel."
    marker = tmp_path/"marker"
    for stage in STAGES[1:]: (project.run_dir/f"stages/{stage}.json").unlink()
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" # a job in the background is started deaf to it
    process = subprocess.Popen(project.words("run", "-P", "mine", before=heed), cwd=project.root, env=project.environment(MISBEHAVE="pause", MARKER=str(marker)),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    wait_until(lambda: not is_running(kernel), 5)
    assert (done.run_dir/"unfinished/01_teacher.ipynb").exists()

def test_killed_after_publishing_the_notebook_is_still_stored(done):
    place, partial = done.run_dir/"notebooks/02_student.ipynb", done.run_dir/"unfinished/02_student.ipynb"
    notebook = nbformat.read(place, 4)
    notebook.cells[-1].metadata.papermill.status = "running"
    nbformat.write(notebook, partial)
    place.unlink()
    assert done.study() == [] and not partial.exists()
    assert nbformat.read(place, 4).cells[-1].metadata.papermill.status == "completed"
    place.rename(partial)
    partial.write_text(partial.read_text()[:200])   # killed while it was written
    assert done.study() == [] and not place.exists()

# ---- several seeds

def test_further_seeds_run_in_folders_of_their_own(project):
    profile = project.root/"profiles/mine.yaml"
    profile.write_text(profile.read_text() + "further_seeds:\n  seeds: [43]\n  teacher: {epochs: 2}\n")
    executed = run_seeds(project.run_dir, project.root, "mine", ["learning_rate=1e-3"], [44], stages=STAGES)
    assert executed == {43: list(STAGES), 44: list(STAGES)}
    records = {seed: json.loads((project.run_dir/f"seeds/{seed}/stages/01_teacher.json").read_text())["parameters"] for seed in executed}
    assert records == {seed: {"epochs": 2, "learning_rate": 1e-3, "seed": seed, "limit": None} for seed in executed}
    assert json.loads((project.run_dir/"seeds/43/stages/00_data.json").read_text())["parameters"]["seed"] == 42 # the data stay as they are
    assert run_seeds(project.run_dir, project.root, "mine", ["learning_rate=1e-3"], [44], stages=STAGES) == {43: [], 44: []}
    with pytest.raises(RunError, match="seed 42 is the run's own"): run_seeds(project.run_dir, project.root, "mine", [], [42], stages=STAGES)
