"README.md is `nbs/index.ipynb`, executed and converted."
import re
import shutil

import pandas as pd
import pytest

from fincompress.app.pages.readme import (
    FIGURE,
    NO_RUN,
    readme,
    run_details,
    run_headline,
    stage_overview,
    write_readme,
)
from fincompress.lib.run.files import write_csv, write_json, write_text
from fincompress.lib.run.source import project_root
from fincompress.lib.run.stage import STAGES, stage_file

ROOT = project_root()


@pytest.fixture(scope="module")
def generated():
    return readme(ROOT)


def test_readme_is_up_to_date(generated):
    written = (ROOT/"README.md").read_text(encoding="utf-8")
    assert written == generated, "README.md is not what index.ipynb gives: run `make readme`"


LEFTOVERS = ("#|", "<div", "<style", "import Markdown", "IPython", "Traceback", "{{", "{%")


def test_readme_holds_no_leftovers_of_a_notebook(generated):
    for left in (*LEFTOVERS, str(ROOT)):
        assert left not in generated, left
    assert generated.startswith("# FinCompress\n") and generated.endswith("\n")
    assert "\n\n\n" not in generated


def test_files_and_commands_that_the_readme_names_exist(generated):
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", generated):
        assert (ROOT/target).exists(), target
    for folder in re.findall(r"`((?:nbs|tests|profiles|fincompress)(?:/\w+)*/)`", generated):
        assert (ROOT/folder).is_dir(), folder
    makefile = (ROOT/"Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", makefile, re.M)
    assert set(re.findall(r"^make (\w+)", generated, re.M)) <= set(targets)


def test_no_table_has_more_than_seven_columns(generated):
    widths = [line.count(" | ") + 1 for line in generated.splitlines() if line.startswith("| ")]
    assert widths and max(widths) <= 7


def test_writing_it_twice_changes_nothing(tmp_path):
    (tmp_path/"nbs").mkdir()
    shutil.copy(ROOT/"nbs/index.ipynb", tmp_path/"nbs/index.ipynb")
    write_readme(tmp_path)
    first = (tmp_path/"README.md").read_bytes()
    write_readme(tmp_path)
    assert (tmp_path/"README.md").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["README.md"]


def test_every_stage_is_in_the_table_of_stages(generated):
    for stage in STAGES:
        link = rf"\[{stage[:2]} [^]]+\]\(nbs/{stage}\.ipynb\)"
        row = re.search(rf"^\| {link} \| (.+)\|", generated, re.M)
        assert row, stage
        assert row[1].split(" | ")[0].endswith("?"), stage
    needs = re.findall(r"\| (–|\d\d(?:, \d\d)*) \|", stage_overview(ROOT/"no run"))
    assert len(needs) == len(STAGES) and needs[0] == "–" and needs[1] == "00"


# With a run and without


def test_without_a_reference_run_it_says_so(tmp_path):
    assert run_headline(tmp_path) == run_details(tmp_path) == NO_RUN
    assert "Minutes" not in stage_overview(tmp_path)


@pytest.fixture
def run(tmp_path, monkeypatch):
    "An invented finished run in a project of its own."
    monkeypatch.setattr("fincompress.app.pages.readme.project_root", lambda: tmp_path)
    run = tmp_path/"outputs/reference"
    for stage in STAGES:
        (tmp_path/"nbs").mkdir(exist_ok=True)
        shutil.copy(ROOT/f"nbs/{stage}.ipynb", tmp_path/"nbs")
        write_json(stage_file(run, stage), dict(
            stage=stage, parameters={"seed": 42}, seconds=90, peak_rss_mb=2100,
            finished="2026-01-01T10:00:00+00:00", summary={"notes": ["A note."]}))
    write_json(run/"run.json", dict(profile="smoke", hardware={"cpu": "A processor"}))
    world = dict(
        variant=["baseline_tfidf", "compact_wide"], num_parameters=[1e5, 9e6],
        size_bytes=[2e6, 1.2e7], val_macro_f1=[.7, .8], test_macro_f1=[.7, .8],
        test_macro_f1_low=[.6, .7], test_macro_f1_high=[.8, .9], latency_ms_p50=[.5, .7],
        delta_macro_f1_vs_floor_low=[0, .05], runtime="ONNX", ours=[False, True],
        times_faster=[100, 80], throughput_per_s=[2000, 1000])
    write_csv(run/"results/compact_results.csv", pd.DataFrame(world))
    return run


def test_with_a_run_the_first_sentence_says_what_to_choose(run):
    headline = run_headline(run)
    assert headline.startswith("Take **Compact, wide** for the best scores (0.800 macro-F1")
    assert "Finished 2026-01-01 10:00 UTC on A processor" in headline
    assert "> A note." in run_details(run)
    overview = stage_overview(run)
    assert "Minutes" in overview and overview.count("| 1.5 | 2.1 |") == len(STAGES)


def test_a_figure_is_linked_where_it_exists(run):
    assert "![" not in run_headline(run)
    write_text(run/FIGURE, "a picture")
    assert f"](outputs/reference/{FIGURE})" in run_headline(run)
    assert "![" not in run_headline(run, with_figure=False)


def test_a_run_that_has_not_finished_counts_as_none(run):
    stage_file(run, "10_world").unlink()
    assert run_headline(run) == NO_RUN
    write_json(run/"run.json", dict(profile="smoke", hardware={}, left_out=["10_world"]))
    assert "Left out: 10_world" in run_headline(run)
