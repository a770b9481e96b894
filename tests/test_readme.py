"README.md is `nbs/index.ipynb`, executed and converted."
import re
import shutil

import pandas as pd
import pytest

from fincompress.app.pages.readme import (
    EXAMPLE,
    FIGURE,
    NO_RUN,
    first_screen,
    readme,
    run_details,
    run_headline,
    stage_overview,
    write_readme,
)
from fincompress.lib.model.registry import display_name
from fincompress.lib.onnx.packaged import (
    DEFAULT_MODEL,
    MODELS,
    packaged_models,
    packaged_variant,
    read_measured,
)
from fincompress.lib.onnx.word_model import save_word_model
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


def test_with_a_run_the_first_sentence_says_which_model_is_best(run):
    headline = run_headline(run)
    assert "**Compact, wide** has the best score on validation (0.800 macro-F1" in headline
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


# The first screen


LICENCES = {"phrasebank": "CC BY-NC-SA 3.0, Malo et al. 2014", "fiqa": "FiQA 2018 challenge",
            "finentity": "ODC-BY", "twitter": "MIT"}
WORLD = [["test", "own_test", .8], ["seen source", "phrasebank", .9],
         ["foreign validation", "finentity", .9], ["foreign test", "finentity", .6],
         ["foreign test", "twitter", .5], ["foreign test", "phrasebank_fiqa", .1]]
MEASURED = dict(bytes=4_400_000, licence="apache-2.0", here=.84, elsewhere=.71, worst=.55,
                worst_set="fiqa", latency_ms=.3, times_faster=250., trained_on=["sentfin"])


@pytest.fixture
def packaged(tmp_path):
    "A folder with the three packaged models, each of two words."
    for name in MODELS:
        save_word_model(tmp_path/"models"/name, {"fell": (2, 0, 0), "cut": (1, 0, 0)})
        write_json(tmp_path/"models"/name/"measured.json", dict(name=name, **MEASURED))
    return tmp_path/"models"


def write_world(run):
    "What 10_world found out about a compact model, and the licences of all sets."
    table = pd.DataFrame(WORLD, columns=["role", "set", "macro_f1"])
    write_csv(run/"results/world.csv", table.assign(model="compact_wide"))
    write_json(run/"data/data_card.json", dict(synthetic=False, licences=LICENCES))


def rows_of(text) -> list[list[str]]:
    "The cells of the first table's rows."
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def test_the_first_screen_is_a_command_and_one_table(generated):
    "What comes before the first heading."
    first = generated.split("\n## ")[0]
    commands = first.split("```")[1]
    assert commands.count("\n") == 3
    assert "pip install" in commands and f'fincompress classify "{EXAMPLE}"' in commands
    assert len(re.findall(r"^\|( ---+ \|)+$", first, re.M)) == 1
    header = next(line for line in first.splitlines() if line.startswith("| Model"))
    assert header.count(" | ") == 6
    assert ("Its answer: **negative**" in first) == (DEFAULT_MODEL in packaged_models())


def test_packaged_models_come_first_and_the_runs_are_not_packaged(run, packaged):
    write_world(run)
    text = first_screen(run, packaged)
    assert "Its answer: **negative** (negative 0.91" in text
    assert f"by `{DEFAULT_MODEL}`" in text
    rows = rows_of(text)
    assert [row[-1] for row in rows] == ["Apache-2.0"]*3 + ["not for commercial use"]
    assert rows[0][4:6] == ["0.840", f"0.710 (0.550, {display_name('fiqa')})"]
    assert rows[3][0] == "**Compact, wide**"
    assert rows[3][4:6] == ["0.800", f"0.550 (0.500, {display_name('twitter')})"]
    assert "not measured on text from elsewhere" not in text
    assert "are not packaged" in text and "PhraseBank" in text


def test_without_packaged_models_the_table_is_the_runs(run, tmp_path):
    write_json(run/"data/data_card.json", dict(synthetic=False, licences=LICENCES))
    text = first_screen(run, tmp_path/"none")
    assert "Its answer" not in text
    (row,) = rows_of(text)
    assert row[-3:] == ["0.800", "not measured", "not for commercial use"]
    assert "not measured on text from elsewhere" in text


def test_without_a_run_the_packaged_models_are_there(tmp_path, packaged):
    text = first_screen(tmp_path/"no run", packaged)
    assert len(rows_of(text)) == 3
    assert NO_RUN in text and "not packaged" not in text


def test_the_comparison_has_both_numbers(run):
    assert "not measured on text from elsewhere" in run_headline(run)
    write_world(run)
    headline = run_headline(run)
    worst = display_name("twitter")
    assert f"| 0.800 (0.700 to 0.900) | 0.550 (0.500, {worst}) |" in headline
    assert "mean macro-F1 over " in headline


# The packaged models


with_packaged = pytest.mark.skipif(not packaged_models(), reason="no packaged models are here yet")


def packaged_numbers(text) -> dict[str, list[str]]:
    "The cells here and elsewhere of each row about a packaged model."
    lines = re.findall(r"^\| \**(Packaged, \w+)\** \| (.+) \|$", text, re.M)
    return {name: cells.split(" | ")[3:5] for name, cells in lines}


@with_packaged
def test_a_packaged_model_has_the_same_two_numbers_in_both_tables(generated):
    first, rest = generated.split("\n## ", 1)
    assert len(packaged_numbers(first)) == len(MODELS)
    assert packaged_numbers(first) == packaged_numbers(rest)


@with_packaged
def test_the_ratio_of_the_default_model_is_in_its_range(generated):
    note = " ".join(generated.split("\n## ")[0].split())
    found = re.search(r"\*\*(.+?)\*\* single rounds gave ([\d,]+) to ([\d,]+)\.", note)
    low, high = (int(number.replace(",", "")) for number in found.groups()[1:])
    ratio = read_measured(packaged_models()[DEFAULT_MODEL])["times_faster"]
    assert low <= round(ratio) <= high


@with_packaged
def test_the_known_limit_is_about_the_packaged_model(generated):
    name = display_name(packaged_variant(DEFAULT_MODEL))
    assert f"**{name}** passes" in " ".join(generated.split())
