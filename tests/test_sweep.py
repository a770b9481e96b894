"""A grid of runs on a project of three tiny notebooks.

What is executed once, failures, interruptions, refusals, and that one run never changes another."""
import os
from collections import Counter

import pandas as pd
import pytest
from conftest import STAGES, make_project

from fincompress.app.scale import sweep as sweeps
from fincompress.app.study.pipeline import locked_run, run_study, stage_status
from fincompress.lib.run.files import RunError, read_json
from fincompress.lib.run.stage import stage_file

BENCHMARK = [
    """run_dir = "outputs/t4" # the run directory
width = 4 # columns""",
    """import pandas as pd
from fincompress.lib.run.stage import Stage
from fincompress.lib.run.files import read_json, write_csv, write_text""",
    'stage = Stage("08_benchmark", globals(), needs=["01_teacher"])',
    r"""lines = read_json(stage.input("results/teacher.json"))["lines"]
if width == 3:
    raise ValueError("shapes differ:\na long story\n[2, 3] and [3, 2]")""",
    """scores = [0.9, 0.5 + lines*width/100]
rows = dict(variant=["teacher", "student_ptq"], val_macro_f1=scores, test_macro_f1=scores, seed=1)
write_text(stage.output("logs/student_ptq.csv"), "epoch")
write_csv(stage.output("results/benchmark_results.csv"), pd.DataFrame(rows))""",
    "stage.publish()",
]
SCORED = ["00_data", "01_teacher", "08_benchmark"]


def scored_project(root):
    "The scratch project with a last stage that writes scores."
    project = make_project(root)
    project.write("08_benchmark", BENCHMARK)
    return project


def planned(project, *grid, **options):
    options = dict(profile="mine", stages=SCORED) | options
    return sweeps.planned_sweep(project.root/"outputs/grid", grid, root=project.root, **options)


def records(sweep, stage):
    "The records of a stage at all points."
    return [stage_file(sweep.run_dir(point), stage) for point in sweep.points]


def executions(sweep):
    "How often each stage was executed: records that are not links to one another."
    return [len({file.stat().st_ino for file in records(sweep, stage)}) for stage in SCORED]


def executed(outcomes):
    return dict(Counter(stage for outcome in outcomes for stage in outcome.executed))


def states(sweep, point):
    return [stage_status(sweep.run_dir(point), stage, values, sweep.root)[0]
            for stage, values in point.parameters.items()]


def times(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    "A finished sweep over two widths and two seeds, and its outcomes."
    project = scored_project(tmp_path_factory.mktemp("swept")/"project")
    sweep = planned(project, "width=1,2", "seed=42,43")
    return sweep, sweeps.run_sweep(sweep)


@pytest.fixture
def scored(tmp_path):
    return scored_project(tmp_path/"project")


# What is executed


def test_a_shared_stage_is_executed_once(swept):
    sweep, outcomes = swept
    assert [outcome.error for outcome in outcomes] == [None]*4
    # both teachers write the same bytes, so the benchmark of one serves the other
    assert executed(outcomes) == {"00_data": 1, "01_teacher": 2, "08_benchmark": 2}
    assert executions(sweep) == [1, 2, 2]


def test_every_point_is_a_run_of_its_own_values(swept):
    sweep, _ = swept
    for point in sweep.points:
        run_dir = sweep.run_dir(point)
        assert states(sweep, point) == ["done"]*3
        used = {stage: read_json(stage_file(run_dir, stage))["parameters"] for stage in SCORED}
        assert used == point.parameters
        assert used["00_data"]["seed"] == 42 # the splits stay
        assert used["01_teacher"]["seed"] == point.values["seed"]
        assert read_json(run_dir/"run.json")["overrides"] == point.overrides
        assert {path.stem for path in (run_dir/"notebooks").iterdir()} == {*SCORED}
    assert not list(sweep.folder.rglob("*.tmp"))


def test_one_table_and_one_plot(swept):
    sweep, _ = swept
    table = pd.read_csv(sweep.folder/"sweep.csv")
    columns = ["point", "width", "seed", "variant", "val_macro_f1", "test_macro_f1"]
    assert [*table.columns] == columns
    student = table[table.variant == "student_ptq"]
    assert student.val_macro_f1.round(2).tolist() == [0.53, 0.53, 0.56, 0.56]
    texts = sweeps.compared_points(table, sweep.axes)
    assert texts["Best on validation"].tolist() == ["", "best"]
    assert (sweep.folder/"sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_sweep_executes_nothing_and_changes_nothing(swept):
    sweep, _ = swept
    before = times(sweep.folder)
    assert executed(sweeps.run_sweep(sweep)) == {}
    after = times(sweep.folder)
    table = sweep.folder/"sweep.csv" # written again, with the same bytes
    assert after.pop(table)[1] == before.pop(table)[1]
    assert after == before
    assert {row for row in sweeps.plan_table(sweep).Executes} == {"nothing"}


def test_a_plan_writes_nothing(scored):
    sweep = planned(scored, "width=1,2", "learning_rate=1e-4,1e-3")
    plan = [stages for _, stages in sweeps.execution_plan(sweep)]
    assert Counter(sum(plan, [])) == {"00_data": 1, "01_teacher": 2, "08_benchmark": 4}
    assert not sweep.folder.exists()


def test_one_run_does_not_change_another(scored):
    sweep = planned(scored, "width=1,2")
    sweeps.run_sweep(sweep)
    first, second = sweep.points
    shared = [folder/"results/teacher.json" for folder in map(sweep.run_dir, sweep.points)]
    assert shared[0].samefile(shared[1])
    before = times(sweep.run_dir(first))
    run_study(sweep.run_dir(second), "mine", [*second.overrides, "rows=5"], root=scored.root,
              stages=SCORED)
    assert times(sweep.run_dir(first)) == before
    assert read_json(shared[1]) == {"lines": 5}
    # the point goes back to the values of the grid, again by the first one's stages
    assert executed(sweeps.run_sweep(sweep)) == {"08_benchmark": 1}
    assert shared[0].samefile(shared[1]) and times(sweep.run_dir(first)) == before


def test_where_there_are_no_hard_links_files_are_copied(scored, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    sweep = planned(scored, "width=1,2")
    assert executed(sweeps.run_sweep(sweep)) == {"00_data": 1, "01_teacher": 1, "08_benchmark": 2}
    assert executions(sweep) == [2, 2, 2]
    assert [states(sweep, point) for point in sweep.points] == [["done"]*3]*2


# Failures


def test_a_failure_leaves_the_other_points(scored):
    sweep = planned(scored, "width=1,3,2")
    outcomes = sweeps.run_sweep(sweep)
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.stage for outcome in failed] == ["08_benchmark"]
    text = sweeps.failure_text(failed[0])
    assert "08_benchmark failed in cell 5" in text and "[2, 3] and [3, 2]" in text
    assert "a long story" not in text
    assert failed[0].notebook.exists() and str(failed[0].notebook) in text
    assert set(pd.read_csv(sweep.folder/"sweep.csv").width) == {1, 2}
    again = sweeps.run_sweep(sweep)  # what failed is tried again, and nothing else
    assert executed(again) == {} and [bool(each.error) for each in again].count(True) == 1


def test_a_shared_stage_that_fails_is_tried_once(scored, monkeypatch):
    monkeypatch.setenv("MISBEHAVE", "error")
    sweep = planned(scored, "width=1,2")
    first, second = sweeps.run_sweep(sweep)
    assert first.executed == ["00_data"] and "IndexError" in first.error
    assert second.executed == []
    assert second.error == f"01_teacher has failed with the same values at {first.point}"
    assert not (sweep.folder/"sweep.csv").exists()
    monkeypatch.delenv("MISBEHAVE")
    assert executed(sweeps.run_sweep(sweep)) == {"01_teacher": 1, "08_benchmark": 2}


# Cut off


def test_interrupted_it_goes_on_where_it_was(scored):
    def interrupted(function, jobs):
        function(jobs[0])
        raise KeyboardInterrupt

    sweep = planned(scored, "width=1,2")
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(sweep, interrupted)
    before = times(sweep.run_dir(sweep.points[0]))
    assert executed(sweeps.run_sweep(sweep)) == {"08_benchmark": 1}
    assert times(sweep.run_dir(sweep.points[0])) == before


def test_a_stage_cut_off_while_it_was_taken_over(swept, tmp_path):
    "Outputs without a record do not count, and are replaced."
    sweep, _ = swept
    source = sweep.run_dir(sweep.points[0])
    target = tmp_path/"run"
    (target/"results").mkdir(parents=True)
    (target/"results/teacher.json").write_text("half")
    sweeps.take_stage(source, target, "00_data")
    sweeps.take_stage(source, target, "01_teacher")
    sweeps.take_stage(source, target, "01_teacher")
    assert (target/"results/teacher.json").read_bytes() == (
        source/"results/teacher.json").read_bytes()
    assert not list(target.rglob("*.tmp"))


# Refused before anything runs


WRONG_GRIDS = [
    (["widht=1,2"], "unknown parameter 'widht', did you mean width"),
    (["techer.epochs=1,2"], "did you mean 01_teacher"),
    (["benchmark.epochs=1,2"], "unknown parameter of 08_benchmark"),
    (["width=1,2", "width=3,4"], "--grid gives 08_benchmark.width twice"),
    (["width=1,2", "08_benchmark.width=3,4"], "give each parameter once"),
    (["width=1,,2"], "a value is empty"),
    (["width=1,"], "a value is empty"),
    (["width="], "a value is empty"),
    (["width"], "write name=v1,v2"),
    (["=1,2"], "write name=v1,v2"),
    (["width=1,1"], "the value 1 is there twice"),
    (["learning_rate=1,1.0"], "the value 1.0 is there twice"),
    (["width=1"], "a grid of one point is a run"),
    ([], "a grid of one point is a run"),
    (["width=1,many"], "expected a whole number, as in 4, and got text: 'many'"),
    (["width=1,2.5"], "got a number"),
    (["learning_rate=1e-4,.nan"], "no plain value"),
    (["width=[1,2"], "not valid YAML"),
    (["run_dir=a,b"], "unknown parameter 'run_dir'"),
    (["width=1,2,3,4", "epochs=1,2,3"], "the grid has 12 points, and at most 10 are run"),
]


@pytest.mark.parametrize("grid, words", WRONG_GRIDS)
def test_wrong_grids_are_refused(project, grid, words):
    project.write("08_benchmark", BENCHMARK)
    with pytest.raises(RunError) as refused:
        planned(project, *grid, most=10)
    assert words in str(refused.value)
    assert not (project.root/"outputs").exists()


def test_a_grid_over_a_stage_that_is_left_out(project):
    project.profile("leave_out: [student]\n")
    with pytest.raises(RunError, match="leaves out 02_student, so nothing changes"):
        planned(project, "width=1,2", stages=STAGES)


def test_values_of_any_kind(project):
    sweep = planned(project, "limit=null,[1, two],a/b", "learning_rate=1,1e-4", stages=STAGES)
    limits = [point.parameters["01_teacher"]["limit"] for point in sweep.points]
    assert limits == [None, None, [1, "two"], [1, "two"], "a/b", "a/b"]
    assert not any("/" in point.name for point in sweep.points)
    assert len({point.name for point in sweep.points}) == 6


def test_a_folder_with_something_else_is_left_alone(scored):
    sweep = planned(scored, "width=1,2")
    (sweep.folder).mkdir(parents=True)
    (sweep.folder/"notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is no sweep"):
        sweeps.run_sweep(sweep)
    assert [path.name for path in sweep.folder.iterdir()] == ["notes.txt"]


def test_another_sweep_in_the_folder_is_refused(swept):
    sweep, _ = swept
    before = times(sweep.folder)
    for grid, options in ((["width=1,8"], {}),
                          (["width=1,2", "seed=42,43"], dict(overrides=["rows=4"]))):
        other = sweeps.planned_sweep(sweep.folder, grid, "mine", root=sweep.root, stages=SCORED,
                                     **options)
        with pytest.raises(RunError, match="--grid width=1,2 --grid seed=42,43"):
            sweeps.run_sweep(other)
        with pytest.raises(RunError, match="holds another sweep"):
            sweeps.plan_table(other)
    assert times(sweep.folder) == before


def test_one_process_a_sweep(scored):
    sweep = planned(scored, "width=1,2")
    with locked_run(sweep.folder):
        with pytest.raises(RunError, match="another process is working"):
            sweeps.run_sweep(sweep)
