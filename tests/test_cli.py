"""The command as it is typed: exit codes, streams, status, compare, the light installation."""
import csv
import io
import json
import re

import numpy as np
import pytest
from conftest import IMPORTS, STAGES, without

from fincompress.app.cli import default_run, rounded_up
from fincompress.lib.onnx.packaged import MODELS
from fincompress.lib.onnx.word_model import save_word_model
from fincompress.lib.run.files import write_json

BENCHMARK = "variant,technique,size_bytes,test_macro_f1,latency_ms_p50\n"
HEAVY = ("papermill", "nbconvert", "nbformat", "nbclient", "torch", "transformers", "pandas",
         "numpy", "filelock", "gradio", "jinja2", "datasets", "sklearn", "matplotlib")
LIGHT = without(*HEAVY)


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


# One seed alone


SEEDED = [
    'run_dir = "outputs/t4" # the run directory\nseed = 42 # of nothing',
    IMPORTS,
    'stage = Stage("02_student", globals(), needs=["01_teacher"])',
    """write_text(stage.output("checkpoints/student/model.safetensors"), "weights")
SCORES = ("val_macro_f1", "test_macro_f1", "delta_macro_f1_vs_teacher", "delta_macro_f1_vs_floor")
HEADER = ",".join(("variant", "seed", *SCORES))
TABLE = f"{HEADER}\\nstudent,{seed},1,1,0,0\\n"
write_text(stage.output("results/benchmark_results.csv"), TABLE)""",
    "stage.publish()",
]


def begun(result):
    "The stages that a command executed."
    return [line.split()[1].rstrip(":") for line in result.stderr.splitlines() if "begun" in line]


def summed_seeds(project):
    "How many seeds the summary has."
    with open(project.run_dir/"results/summary.csv") as file:
        return [int(row["seeds"]) for row in csv.DictReader(file)]


def test_one_seed_alone(project):
    "A further seed in its folder, the run's own in the run, and the choice of stages for it."
    words = ("run", "-P", "mine", "--only", "data", "--only-seed")
    alone = project.command(*words, 43)
    assert alone.returncode == 0 and begun(alone) == ["00_data"]
    assert "seed 43 alone" in alone.stderr
    assert [path.name for path in project.run_dir.iterdir()] == ["seeds"]
    assert (project.run_dir/"seeds/43/stages/00_data.json").exists()
    assert begun(project.command(*words, 42)) == ["00_data"]
    assert (project.run_dir/"stages/00_data.json").exists()


def test_a_seed_without_its_weights_is_not_trained_again(done):
    "Its tables count; --only-seed makes its weights again."
    done.write("02_student", SEEDED)
    done.profile("01_teacher:\n  epochs: 1\nfurther_seeds:\n  seeds: [43]\n")
    assert begun(done.command("run", "-P", "mine")) == ["02_student", *STAGES]
    teacher = json.loads((done.run_dir/"seeds/43/stages/01_teacher.json").read_text())
    assert teacher["parameters"]["seed"] == 43 and summed_seeds(done) == [2]
    (done.run_dir/"seeds/43/checkpoints/student/model.safetensors").unlink()
    (done.run_dir/"results/summary.csv").unlink()
    result = done.command("run", "-P", "mine")
    assert begun(result) == [] and summed_seeds(done) == [2]
    assert "seed 43: results only, its weights are not here" in result.stderr.splitlines()
    (done.run_dir/"checkpoints/student/model.safetensors").unlink()
    alone = done.command("run", "-P", "mine", "--only-seed", 43)
    assert begun(alone) == ["02_student"] and summed_seeds(done) == [2]
    assert "seed 42: results only, its weights are not here" in alone.stderr.splitlines()


EXITS = [
    (["run", "-P", "mine", "--only-seed", "43", "--further-seed", "44"], 1,
     "error: --only-seed and --further-seed exclude each other"),
    (["run", "-P", "mine", "--further-seed", "44", "--from", "data"], 1,
     "write --only-seed 44 to run stages of that seed"),
    (["run", "-P", "mine", "--only-seed", "-1"], 2, "Invalid value for '--only-seed'"),
    (["classify", "compact_tiny", "Sales fell"], 1, "use --model"),
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


@pytest.mark.parametrize("given, said", [
    ("p\nn\n", "no sentence without a label is left, so add more"),
    ("p\ns\n", "the same command goes on"),
    ("p\n", "the same command goes on"),
])
def test_too_few_labels_say_what_comes_next(fincompress, tmp_path, given, said):
    "The same command goes on where a sentence is left without a label, and nowhere else."
    save_word_model(tmp_path/"words", {"fell": (2, 0, 0), "rose": (0, 0, 2)})
    (tmp_path/"mine.csv").write_text("text\nSales rose\nSales fell\n")
    words = ("--label", "--model", tmp_path/"words", "--out", tmp_path/"adapted")
    result = fincompress("adapt", tmp_path/"mine.csv", *words, given=given)
    assert result.code == 0 and result.out.endswith(f"with some of each label: {said}\n")


# Packaged models


PATCH = """
import pathlib
import fincompress.lib.onnx.packaged
fincompress.lib.onnx.packaged.models_folder = lambda: pathlib.Path({folder!r})
"""


THRESHOLDS = {"0.05": 0.98457822, "0.1": 0.90004, "0.025": 0.9999999}


@pytest.fixture(scope="module")
def toy_models(tmp_path_factory):
    "Toy models in place of the packaged ones: code that comes before the command."
    cascade = dict(small="compact_tiny", large="compact_wide", min_confidence=0.9)
    folder = tmp_path_factory.mktemp("models")
    for i, name in enumerate(MODELS):
        save_word_model(folder/name, {"fell": (2, 0, 0), "rose": (0, 0, 2)})
        here = 0.9 - 0.01*i
        write_json(folder/name/"measured.json", dict(
            name=name, bytes=4_600_000, licence="Apache-2.0", here=here, elsewhere=here - 0.1,
            worst=here - 0.2, worst_set="fiqa", latency_ms=0.5, times_faster=300.0,
            trained_on=["sentfin", "twitter"], min_confidence=THRESHOLDS, cascade=cascade))
    return PATCH.format(folder=str(folder))


def test_models_are_listed(project, toy_models):
    shown = project.command("models", before=LIGHT + toy_models).stdout
    assert "(default)" in shown and "Apache-2.0" in shown
    assert all(text in shown for text in ("0.890", "0.690", "FiQA"))
    printed = project.command("models", "--csv", before=LIGHT + toy_models).stdout
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [row["name"] for row in rows] == [*MODELS]
    assert [*rows[0]] == ["name", "bytes", "licence", "here", "elsewhere", "worst", "worst_set",
                          "min_confidence"]
    assert rows[0]["bytes"] == "4600000"
    exact = re.findall(r"(\S+) \(([\d.]+)%\)", rows[0]["min_confidence"])
    assert {float(share)/100: float(value) for value, share in exact} == {
        float(share): value for share, value in THRESHOLDS.items()}


def test_thresholds_are_rounded_up(project, toy_models):
    "A value below the threshold would allow more wrong answers than promised."
    shown = project.command("models", before=LIGHT + toy_models).stdout
    assert "compact_narrow: 0.9846 (5%), 0.9001 (10%), 1.0000 (2.5%)\n" in shown
    for value in (0.1 + 0.2, np.nextafter(0.9, 1), 0.99999, 0.5, 1.):
        assert value <= float(rounded_up(value)) < value + 1.01e-4
    assert "conformal risk control" in shown and "foreign validation sets" in shown


def test_the_cascade_is_named_beside_the_models(project, toy_models):
    shown = project.command("models", before=LIGHT + toy_models).stdout
    assert "compact_cascade: compact_tiny answers, and compact_wide where" in shown
    assert "0.9000; it has no values of its own" in shown


def test_a_sentence_is_enough(project, toy_models):
    answered = project.command("classify", "Sales fell", before=toy_models)
    assert answered.returncode == 0 and "negative" in answered.stdout
    tiny = project.command("classify", "--model", "compact_tiny", "--csv", "Sales rose",
                           before=toy_models)
    assert tiny.stdout.splitlines()[1].startswith("Sales rose,positive")


@pytest.mark.parametrize("words", [["models"], ["models", "--csv"], ["classify", "Sales fell"]])
def test_a_copy_without_packaged_models_says_what_to_do(project, tmp_path, words):
    result = project.command(*words, before=PATCH.format(folder=str(tmp_path/"nothing")))
    assert result.returncode == 1 and result.stdout == ""
    assert "make package" in result.stderr and "Traceback" not in result.stderr


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


@pytest.mark.parametrize(("profile", "name"), [
    ("t4", "t4"), ("v1.2", "v1.2"), ("mine.yaml", "mine"), ("profiles/a.b.yml", "a.b")])
def test_a_profile_has_a_run_directory_of_its_own(profile, name):
    assert default_run(profile).name == name


def test_a_seed_that_cannot_be_run_is_refused_before_the_study(project):
    done = project.command("run", "-P", "mine", "--run-dir", project.run_dir,
                           "--further-seed", 42)
    assert done.returncode == 1 and "seed 42 is the run's own" in done.stderr
    assert not (project.run_dir/"stages").exists()
