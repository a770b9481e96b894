"""The command as a person types it: exit codes, what goes where, status, compare, and the light installation."""
import csv, io, json
import pytest
from conftest import STAGES

BENCHMARK = "variant,technique,size_bytes,test_macro_f1,latency_ms_p50\n"
LIGHT = """
import sys
from importlib.machinery import PathFinder
class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        if name.partition(".")[0] not in ("papermill", "nbconvert", "nbformat", "nbclient", "torch", "transformers", "pandas", "numpy", "filelock", "gradio"): return super().find_spec(name, *rest)
sys.meta_path[:] = [Light if finder is PathFinder else finder for finder in sys.meta_path]
"""

@pytest.fixture
def two_runs(tmp_path):
    for run, lines in {"a": "teacher,fine-tuning,438000000,0.9,100.5\nstudent_ptq,ptq,4400000,0.825,1.5\n", "b": "teacher,fine-tuning,91000000,0.875,50\n"}.items():
        (tmp_path/run/"results").mkdir(parents=True)
        (tmp_path/run/"results/benchmark_results.csv").write_text(BENCHMARK + lines)
    return tmp_path/"a", tmp_path/"b"

def test_run_writes_progress_to_stderr_and_plain_lines(finished):
    lines = finished.first.stderr.splitlines()
    assert lines[0] == "[1/3] 00_data: begun (not run yet)" and lines[1].startswith("[1/3] 00_data: done in 0:")
    assert "[2/3] 01_teacher: teacher epoch 1/1 step 4/4 · val macro-F1 0.625 · 0:02 left" in lines
    assert finished.first.stdout == f"report: {finished.run_dir}\n" and "\x1b" not in finished.first.stderr

def test_second_run_does_nothing_and_says_so(done):
    (done.run_dir/"report.html").write_text("as it was")
    result = done.command("run", "-P", "mine")
    assert (result.returncode, result.stdout) == (0, "everything is up to date: nothing was run\n")
    assert result.stderr.splitlines() == [f"[{i}/3] {stage}: up to date" for i, stage in enumerate(STAGES, 1)]

def test_a_summary_over_seeds_that_changed_is_new_for_the_report(tmp_path, monkeypatch):
    "Also where no stage of this command ran; what a command brought up to date is new in any case."
    from fincompress.app.study import seeds
    from fincompress.app.cli import run_further
    monkeypatch.setattr("fincompress.app.cli.project_root", lambda: tmp_path)
    def finish(folder, seed, f1):
        (folder/"results").mkdir(parents=True, exist_ok=True)
        (folder/"results/benchmark_results.csv").write_text(f"variant,seed,{','.join(seeds.SUMMED)}\nteacher,{seed},{f1},{f1},0,0\n")
        (folder/"results/ablation.csv").write_text(f"step,val_macro_f1\nlabels,{f1}\n")
    def is_new(executed):
        monkeypatch.setattr(seeds, "run_seeds", lambda *words, **options: executed)
        return run_further(tmp_path, "mine", [], [43], False, None)
    finish(tmp_path, 42, 0.8), finish(seeds.seed_folder(tmp_path, 43), 43, 0.9)
    assert not is_new({}) and not (tmp_path/"results/summary.csv").exists() # one seed has no summary
    assert is_new({43: []}) and not is_new({43: []}) and is_new({43: ["08_benchmark"]})
    finish(tmp_path, 42, 0.7)
    assert is_new({43: []}) and not is_new({43: []})

@pytest.mark.parametrize("words, code, said", [
    (["run", "-P", "mine", "-p", "epoch=3"], 1, "error: unknown parameter 'epoch', did you mean epochs?"), (["run", "-P", "none"], 1, "error: unknown profile 'none'"),
    (["run", "--frm", "data"], 2, "No such option"), (["jump"], 2, "No such command"), (["status", "nowhere"], 1, "error: nowhere is no run directory"), (["compare", "nowhere"], 1, "error: ")])
def test_exit_codes(project, words, code, said):
    result = project.command(*words)
    assert result.returncode == code and said in result.stderr and result.stdout == "" and "Traceback" not in result.stderr
    assert not (project.root/"outputs").exists()

def test_a_failing_cell_exits_1(done):
    result = done.command("run", "-P", "mine", "--from", "teacher", MISBEHAVE="error")
    assert result.returncode == 1 and "error: 01_teacher failed in cell 6" in result.stderr and "IndexError" in result.stderr and "Traceback" not in result.stderr

def test_our_own_mistakes_keep_their_traceback(done):
    result = done.command("status", done.run_dir, before="import fincompress.app.study.pipeline as p\np.stage_status = lambda *_: 1/0")
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr and "Traceback" in result.stderr

def test_status_repeats_the_recorded_command(done):
    rows = json.loads(done.command("status", done.run_dir, "--json").stdout)
    assert [(row["stage"], row["state"]) for row in rows] == [(stage, "done") for stage in STAGES] and rows[0]["seconds"] >= 0 and rows[0]["finished"]
    (done.root/"profiles/mine.yaml").write_text("01_teacher:\n  epochs: 4\n")
    shown = done.command("status", done.run_dir).stdout
    assert "parameter epochs: 1 → 4" in shown and "up to date" in shown
    (done.root/"profiles/mine.yaml").unlink()   # the values recorded by stage stand in
    assert {row["state"] for row in json.loads(done.command("status", done.run_dir, "--json").stdout)} == {"done"}

def test_compare(project, two_runs):
    shown = project.command("compare", *two_runs).stdout
    assert "438.0" in shown and "100.50" in shown and "0.875" in shown and shown.count("–") == 3
    rows = list(csv.DictReader(io.StringIO(project.command("compare", *two_runs, "--csv").stdout)))
    assert [(row["run"], row["variant"], float(row["test_macro_f1"])) for row in rows] == [("a", "teacher", 0.9), ("a", "student_ptq", 0.825), ("b", "teacher", 0.875)]

def test_compare_names_a_damaged_file(project, two_runs):
    (two_runs[1]/"results/benchmark_results.csv").write_text("variant,size_bytes\nteacher,1\n")
    result = project.command("compare", *two_runs)
    assert result.returncode == 1 and "b/results/benchmark_results.csv is damaged ('test_macro_f1')" in result.stderr

def test_light_installation(done, two_runs):
    assert done.command("--version", before=LIGHT).stdout.count(".") == 2
    assert "Run the study" in done.command("--help", before=LIGHT).stdout
    assert "up to date" in done.command("status", done.run_dir, before=LIGHT).stdout
    assert "0.825" in done.command("compare", *two_runs, before=LIGHT).stdout
    for words in (["run", "-P", "mine"], ["report", done.run_dir], ["export", done.run_dir, "teacher"]):
        result = done.command(*words, before=LIGHT)
        assert result.returncode == 1 and 'pip install "fincompress[study]"' in result.stderr
    assert 'pip install "fincompress[study,demo]"' in done.command("demo", done.run_dir, before=LIGHT).stderr

def test_nobody_else_is_disturbed_when_piped(done):
    assert done.command("status", done.run_dir, "--json").stderr == ""
