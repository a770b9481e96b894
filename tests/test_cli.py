"""The command as it is typed: exit codes, streams, status, compare, the light installation."""
import csv
import io
import json

import pytest
from conftest import STAGES

BENCHMARK = "variant,technique,size_bytes,test_macro_f1,latency_ms_p50\n"
HEAVY = ("papermill", "nbconvert", "nbformat", "nbclient", "torch", "transformers", "pandas",
         "numpy", "filelock", "gradio", "jinja2", "datasets", "sklearn", "matplotlib")
LIGHT = f"""
import sys
from importlib.machinery import PathFinder

class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        if name.partition(".")[0] not in {HEAVY}:
            return super().find_spec(name, *rest)

sys.meta_path[:] = [Light if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def two_runs(tmp_path):
    results = {
        "a/results/benchmark_results.csv":
            "teacher,fine-tuning,438000000,0.9,100.5\nstudent_ptq,ptq,4400000,0.825,1.5\n",
        "a/results/compact_results.csv":
            "teacher,fine-tuning,438000000,0.9,90\ncompact_narrow,recipe,4400000,0.85,0.25\n"
            "bert_base_onnx,none,440000000,,77.5\n",
        "b/results/benchmark_results.csv": "teacher,fine-tuning,91000000,0.875,50\n"}
    for name, lines in results.items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text(BENCHMARK + lines)
    return tmp_path/"a", tmp_path/"b"


def test_run_writes_progress_to_stderr_and_plain_lines(finished):
    lines = finished.first.stderr.splitlines()
    assert lines[0] == "[1/3] 00_data: begun (not run yet)"
    assert lines[1].startswith("[1/3] 00_data: done in 0:")
    training = "teacher epoch 1/1 step 4/4 · val macro-F1 0.625 · 0:02 left"
    assert f"[2/3] 01_teacher: {training}" in lines
    assert finished.first.stdout == f"report: {finished.run_dir}\n"
    assert "\x1b" not in finished.first.stderr


def test_second_run_does_nothing_and_says_so(done):
    (done.run_dir/"report.html").write_text("as it was")
    result = done.command("run", "-P", "mine")
    assert result.returncode == 0
    assert result.stdout == "everything is up to date: nothing was run\n"
    skipped = [f"[{i}/3] {stage}: up to date" for i, stage in enumerate(STAGES, 1)]
    assert result.stderr.splitlines() == skipped


def test_a_run_without_the_stages_left_out_is_finished(project):
    project.profile("leave_out: [02_student]\n")
    result = project.command("run", "-P", "mine")
    assert result.stdout == f"report: {project.run_dir}\n"
    rows = json.loads(project.command("status", project.run_dir, "--json").stdout)
    assert [row["state"] for row in rows] == ["done", "done", "left out"]
    (project.root/"profiles/mine.yaml").unlink()  # run.json stands in
    rows = json.loads(project.command("status", project.run_dir, "--json").stdout)
    assert [row["state"] for row in rows] == ["done", "done", "left out"]


def finish(folder, seed, f1):
    "Tables of one seed."
    from fincompress.app.study.seeds import SUMMED
    (folder/"results").mkdir(parents=True, exist_ok=True)
    benchmark = f"variant,seed,{','.join(SUMMED)}\nteacher,{seed},{f1},{f1},0,0\n"
    (folder/"results/benchmark_results.csv").write_text(benchmark)
    (folder/"results/ablation.csv").write_text(f"step,val_macro_f1\nlabels,{f1}\n")


def test_a_summary_over_seeds_that_changed_is_new_for_the_report(tmp_path, monkeypatch):
    "Also where no stage of this command ran; what a command brought up to date is new in any case."
    from fincompress.app.cli import run_further
    from fincompress.app.study import seeds
    monkeypatch.setattr("fincompress.app.cli.project_root", lambda: tmp_path)

    def is_new(executed):
        monkeypatch.setattr(seeds, "run_seeds", lambda *words, **options: executed)
        return run_further(tmp_path, "mine", [], [43], False, None)

    finish(tmp_path, 42, 0.8)
    finish(seeds.seed_folder(tmp_path, 43), 43, 0.9)
    assert not is_new({})  # one seed has no summary
    assert not (tmp_path/"results/summary.csv").exists()
    assert is_new({43: []}) and not is_new({43: []})
    assert is_new({43: ["08_benchmark"]})
    finish(tmp_path, 42, 0.7)
    assert is_new({43: []}) and not is_new({43: []})


EXITS = [
    (["run", "-P", "mine", "-p", "epoch=3"], 1,
     "error: unknown parameter 'epoch', did you mean epochs?"),
    (["run", "-P", "none"], 1, "error: unknown profile 'none'"),
    (["run", "--frm", "data"], 2, "No such option"),
    (["jump"], 2, "No such command"),
    (["status", "nowhere"], 1, "error: nowhere is no run directory"),
    (["compare", "nowhere"], 1, "error: nowhere has no results"),
]


@pytest.mark.parametrize("words, code, said", EXITS)
def test_exit_codes(project, words, code, said):
    result = project.command(*words)
    assert result.returncode == code and said in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert not (project.root/"outputs").exists()


@pytest.mark.parametrize("verb", ["run", "status", "compare", "report"])
def test_a_run_of_an_earlier_version_gets_one_message(project, verb):
    old = project.run_dir/"checkpoints/student_wide_int8"
    old.mkdir(parents=True)
    (old/"config.json").write_text("{}")
    words = ["-P", "mine", "--run-dir", project.run_dir] if verb == "run" else [project.run_dir]
    result = project.command(verb, *words, real_report=True)
    assert result.returncode == 1 and result.stdout == ""
    assert "earlier version" in result.stderr and "compact_wide" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_failing_cell_exits_1(done):
    result = done.command("run", "-P", "mine", "--from", "teacher", MISBEHAVE="error")
    assert result.returncode == 1 and "error: 01_teacher failed in cell 6" in result.stderr
    assert "IndexError" in result.stderr and "Traceback" not in result.stderr


def test_our_own_mistakes_keep_their_traceback(done):
    broken = "import fincompress.app.study.pipeline as p\np.stage_status = lambda *_: 1/0\n"
    result = done.command("status", done.run_dir, before=broken)
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr and "Traceback" in result.stderr


def test_status_repeats_the_recorded_command(done):
    rows = json.loads(done.command("status", done.run_dir, "--json").stdout)
    states = [(row["stage"], row["state"]) for row in rows]
    assert states == [(stage, "done") for stage in STAGES]
    assert rows[0]["seconds"] >= 0 and rows[0]["finished"]
    done.profile("01_teacher:\n  epochs: 4\n")
    shown = done.command("status", done.run_dir).stdout
    assert "parameter epochs: 1 → 4" in shown and "up to date" in shown
    (done.root/"profiles/mine.yaml").unlink()  # the values recorded by stage stand in
    rows = json.loads(done.command("status", done.run_dir, "--json").stdout)
    assert {row["state"] for row in rows} == {"done"}


def test_compare_shows_both_tables(project, two_runs):
    shown = project.command("compare", *two_runs).stdout
    assert "438.0" in shown and "100.50" in shown and "0.875" in shown
    assert "compact_narrow" in shown and "90.00" not in shown  # the study's teacher counts
    assert shown.count("–") == 3*3 + 1
    printed = project.command("compare", *two_runs, "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(printed)))
    scores = [(row["run"], row["variant"], row["test_macro_f1"]) for row in rows]
    assert scores == [("a", "teacher", "0.9"), ("a", "student_ptq", "0.825"),
                      ("a", "compact_narrow", "0.85"), ("a", "bert_base_onnx", ""),
                      ("b", "teacher", "0.875")]


def test_compare_names_a_damaged_file(project, two_runs):
    damaged = "variant,size_bytes\nteacher,1\n"
    (two_runs[1]/"results/benchmark_results.csv").write_text(damaged)
    result = project.command("compare", *two_runs)
    assert result.returncode == 1
    assert "b/results/benchmark_results.csv is damaged ('test_macro_f1')" in result.stderr


def test_light_installation(done, two_runs):
    assert done.command("--version", before=LIGHT).stdout.count(".") == 2
    assert "Run the study" in done.command("--help", before=LIGHT).stdout
    assert "up to date" in done.command("status", done.run_dir, before=LIGHT).stdout
    assert "0.825" in done.command("compare", *two_runs, before=LIGHT).stdout
    heavy = (["run", "-P", "mine"], ["report", done.run_dir], ["export", done.run_dir, "teacher"])
    for words in heavy:
        result = done.command(*words, before=LIGHT)
        assert result.returncode == 1
        assert 'pip install "fincompress[study]"' in result.stderr
    result = done.command("demo", done.run_dir, before=LIGHT)
    assert 'pip install "fincompress[study,demo]"' in result.stderr


def test_nothing_is_added_when_piped(done):
    assert done.command("status", done.run_dir, "--json").stderr == ""
