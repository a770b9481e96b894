"The report of a run: whole, self-contained, readable in a browser, refused where incomplete."
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import KERNEL, loopback
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fincompress.app.pages.notebook_html import mathml
from fincompress.app.pages.report import write_report
from fincompress.app.results import (
    ELSEWHERE,
    HERE,
    bold,
    compact_table,
    floor_sentence,
    results_table,
)
from fincompress.app.study.pipeline import execute_notebook
from fincompress.lib.model.registry import display_name
from fincompress.lib.run.files import RunError, read_json, write_csv, write_json
from fincompress.lib.run.machine import duration
from fincompress.lib.run.source import project_root
from fincompress.lib.run.stage import STAGES, stage_file

ROOT = project_root()
FORMULA = (r"$$\mathcal{L} = \alpha T^2\,\mathrm{KL}(p_T \| p_S) + (1-\alpha)\,\mathrm{CE}, "
           r"\quad p_i = \frac{\exp(z_i/T)}{\sum_j \exp(z_j/T)}$$")
BADGE = "![badge](https://example.org/badge.svg) [data](00_data.ipynb)"
SOURCE = new_notebook(metadata={"kernelspec": KERNEL}, cells=[
    new_markdown_cell("# A stage\n\n> Its subtitle\n\n**Question.** How good\nis it? And why?"),
    new_markdown_cell(f"## Why $T^2$\n\n{FORMULA}\n\n{BADGE}"),
    new_code_cell("import os, sys", metadata={"tags": ["colab"]}),
    new_code_cell("#| hide\nprint('hidden', 'words')"),
    new_code_cell("#| export\nimport pandas as pd\nimport matplotlib.pyplot as plt"),
    new_code_cell("#| export\ndef plotted(): pass"),
    new_code_cell("epochs = 3 # passes over `train`\nsource = 'hub'\nrun_dir = 'outputs/t4'",
                  metadata={"tags": ["parameters"]}),
    new_code_cell("pd.DataFrame({f'column {i}': [i/7]*3 for i in range(20)})"),
    new_code_cell("print('standard output', os.getcwd() + '/outputs')\n"
                  "print('progress', 'bar', file=sys.stderr)"),
    new_markdown_cell("### Curves"),
    new_code_cell("plt.plot([1, 2])\npath = 'figures/kd_curve.png'\nplt.show()"),
    new_code_cell("stage = None # Stage('01_teacher', globals(), needs=[\"00_data\"])"),
    new_code_cell("raise SystemError", metadata={"tags": ["skip-execution"]})])


def results(rows):
    "A table of results with intervals of three points."
    names = ["variant", "num_parameters", "size_bytes", "test_macro_f1", "latency_ms_p50"]
    table = pd.DataFrame(rows, columns=names)
    score = table.test_macro_f1
    return table.assign(val_macro_f1=score, test_macro_f1_low=score - .03,
                        test_macro_f1_high=score + .03, delta_macro_f1_vs_floor_low=score - .73)


FLOOR = ["baseline_tfidf", 3e4, 2e6, .70, .9]
STUDY = results([
    FLOOR, ["teacher", 2.2e7, 9e7, .90, 20], ["student_ptq", 1.2e7, 1.5e7, .80, 4],
    ["student_qat", 1.2e7, 1.5e7, .65, 4]])
WORLD = results([
    FLOOR, ["bert_base_onnx", 1.1e8, 4.4e8, None, 60], ["compact_wide", 9e6, 1.23e7, .88, .7],
    ["compact_tiny", 1e6, 1.5e6, .82, .1]]).assign(
        runtime="ONNX Runtime", ours=[False, False, True, True], times_faster=[70, 1, 80, 600],
        throughput_per_s=1000)
CLAIMS = pd.DataFrame([
    ["PTQ is nearly free", -.004, -.002, -.009, .004, "holds", "a note", "macro_f1"],
    ["QAT beats PTQ", .01, -.15, -.2, -.1, "fails", "", "macro_f1"]],
    columns=["claim", "published", "ours", "low", "high", "verdict", "note", "measure"])


def record(stage, folder):
    "What a stage publishes."
    values = {"epochs": 1, "source": str(folder/"mine.csv"), "seed": 42}
    return dict(stage=stage, parameters=values, seconds=61.0, peak_rss_mb=1234.0,
                finished="2026-01-01T10:00:00+00:00",
                summary={"notes": ["Synthetic <sentences>."]})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished run of small notebooks, executed as the pipeline executes them."
    folder = tmp_path_factory.mktemp("report")
    run = folder/"outputs/small"
    nbformat.write(SOURCE, folder/"source.ipynb")
    (run/"notebooks").mkdir(parents=True)
    values = {"epochs": 1, "run_dir": "outputs/small"}
    execute_notebook(folder/"source.ipynb", folder/"executed.ipynb", values, ROOT)
    for stage in STAGES:
        shutil.copy(folder/"executed.ipynb", run/f"notebooks/{stage}.ipynb")
        write_json(stage_file(run, stage), record(stage, folder))
    write_json(run/"run.json", dict(
        profile="smoke", hardware={"cpu": "A processor", "cores": 2},
        versions={"python": "3.11"}, source={"commit": "abc", "changed": True}, left_out=[]))
    write_csv(run/"results/benchmark_results.csv", STUDY)
    write_csv(run/"results/compact_results.csv", WORLD)
    write_csv(run/"results/claims.csv", CLAIMS)
    return run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path/"outputs/small")


LOADING = ("src", "srcset", "data", "poster", "action", "background")
OUTSIDE = re.compile(r"url\((?!['\"]?data:)[^)]*\)|@import[^;]*")


class Page(HTMLParser):
    "Ids, pictures, links inside the page, and everything that a browser would load."

    def __init__(self, text):
        super().__init__()
        self.ids = []
        self.pictures = []
        self.inner = []
        self.outside = OUTSIDE.findall(text)
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "img":
            self.pictures.append(found)
        if tag == "a" and found.get("href", "").startswith("#"):
            self.inner.append(found["href"][1:])
        for name in LOADING if tag == "a" else (*LOADING, "href"):
            if found.get(name) and not found[name].startswith(("data:", "#")):
                self.outside.append(f"{tag} {name}={found[name]}")


def report(run):
    return write_report(run).read_text(encoding="utf-8")


def test_one_file_with_everything_and_nothing_from_outside(run):
    text = report(run)
    page = Page(text)
    assert page.outside == []
    assert "default-src 'none'" in text
    assert len(page.ids) == len(set(page.ids))
    assert set(page.inner) <= set(page.ids) and set(STAGES) <= set(page.inner)
    assert len(page.pictures) == len(STAGES)
    assert all(picture["alt"] == "Curves: kd curve" for picture in page.pictures)
    assert text.count("column 19") == len(STAGES)
    assert text.count("<math") >= 2*len(STAGES)
    assert len(text) < 8e6*len(page.pictures)/25
    assert not list(run.glob(".*.tmp"))


def test_shows_what_a_reader_wants_and_nothing_else(run):
    text = report(run)
    folders = (str(run), str(run.parents[1]), f"{ROOT}/", str(Path.home()) + "/")
    for gone in ("hidden words", "progress bar", "#|", "injected", *folders):
        assert gone not in text, gone
    for label in ("Code: plotted", "Imports", "Set-up on Colab"):
        assert text.count(">" + label + "</summary>") == len(STAGES), label
    assert text.count("Synthetic &lt;sentences&gt;.") == 1
    for part in ("<mark>1</mark>", "passes over <code>train</code>", "<mark>…/mine.csv</mark>",
                 "standard output …/outputs"):
        assert part in text, part
    facts = ("2026-01-01 10:00 UTC", duration(61*len(STAGES)), "smoke",
             "A processor, 2 cores", "python 3.11", "abc with changes")
    for fact in facts:
        assert fact in text, fact


def first_page(text):
    "What comes before the first stage's notebook."
    return text[:text.index("<section")]


def test_the_first_page_says_which_model_is_best_and_holds_every_table(run):
    text = first_page(report(run))
    assert "<strong>Compact, wide</strong> has the best score on validation (0.880" in text
    assert "<strong>Compact, tiny</strong> is the fastest" in text
    assert "BERT-base, ONNX" in text and "Student, QAT int8" in text
    assert "PTQ is nearly free" in text and "-0.2 points (-0.9 to +0.4)" in text
    assert "<strong>fails</strong>" in text
    assert text.count("How good is it?") == len(STAGES) and "And why?" not in text
    assert text.count("<td>00</td><td>1.0</td><td>1.2</td>") == len(STAGES)


def test_no_table_of_the_first_page_has_more_than_seven_columns(run):
    for table in re.findall(r"<table>.*?</table>", first_page(report(run)), re.S):
        assert len(re.findall("<th ", table)) <= 7


def test_results_are_the_files_own(run):
    table = results_table(run, bold)
    assert table["Model"].tolist() == ["TF-IDF, linear", "Teacher", "Student, PTQ int8",
                                       "Student, QAT int8"]
    assert table["Size (MB)"][0] == "**2.0**"
    assert table["Macro-F1 on test (95% interval)"][1] == "**0.900** (0.870 to 0.930)"
    assert table["Times smaller"][2] == "6.0" and table["Times faster"][2] == "5.0"
    compact = compact_table(run)
    assert compact.Model.tolist()[0] == "Compact, tiny"  # the fastest
    assert compact[f"{HERE} (95% interval)"].tolist()[-1] == "–"
    assert compact[ELSEWHERE].tolist() == ["not measured"]*3 + ["–"]
    said = floor_sentence(run)
    clear = "whole interval of the paired difference: Student, PTQ int8; Compact, wide; Compact,"
    assert clear in said and "Not above it: Student, QAT int8." in said


def test_both_numbers_on_the_first_page(run):
    assert "not measured on text from elsewhere" in first_page(report(run))
    rows = [["compact_wide", "test", "own_test", .88],
            ["compact_wide", "foreign test", "finentity", .61],
            ["compact_wide", "foreign test", "twitter", .51],
            ["compact_wide", "foreign test", "phrasebank_fiqa", .9],
            ["packaged_wide", "foreign test", "phrasebank", .7]]
    columns = ["model", "role", "set", "macro_f1"]
    write_csv(run/"results/world.csv", pd.DataFrame(rows, columns=columns))
    write_json(run/"data/data_card.json", dict(
        synthetic=False, missing=dict(semeval_headlines="no <file>"),
        licences=dict(phrasebank="CC BY-NC-SA 3.0", twitter="MIT", finentity="ODC-BY")))
    text = first_page(report(run))
    elsewhere = f"0.560 (0.510, {display_name('twitter')})"
    cells = ("0.880 (0.850 to 0.910)", elsewhere, "not for commercial use")
    assert "</td><td>".join(cells) in text
    assert "not measured on text from elsewhere" not in text
    assert "(no &lt;file&gt;)" in text
    assert compact_table(run)[ELSEWHERE].tolist() == [
        "not measured", elsewhere, "not measured", "–"]


def test_several_seeds(run):
    both = pd.concat([STUDY.assign(seed=1), STUDY.assign(seed=2)])
    write_csv(run/"results/benchmark_results.csv", both)
    names = results_table(run)["Model"].tolist()
    assert names[0] == "TF-IDF, linear, seed 1" and names[-1] == "Student, QAT int8, seed 2"
    assert floor_sentence(run).count("Student, QAT int8") == 1
    write_report(run)


def test_without_the_floor_it_says_so(run):
    write_csv(run/"results/benchmark_results.csv", STUDY[1:])
    write_csv(run/"results/compact_results.csv", WORLD[1:])
    assert "This run has no floor" in report(run)


LEAVING = [
    (["03_vanilla_kd", "06_qat"], []),
    (["08_benchmark"], ["benchmark_results", "claims"]),
    (["09_compact", "10_world"], ["compact_results"]),
]


@pytest.mark.parametrize("stages, tables", LEAVING)
def test_stages_that_the_profile_leaves_out_are_named_and_not_required(run, stages, tables):
    for stage in stages:
        stage_file(run, stage).unlink()
        (run/f"notebooks/{stage}.ipynb").unlink()
    for name in tables:
        (run/f"results/{name}.csv").unlink()
    with pytest.raises(RunError):
        write_report(run)
    write_json(run/"run.json", read_json(run/"run.json") | {"left_out": stages})
    text = report(run)
    assert f"leaves out {', '.join(stages)}" in text
    page = Page(text)
    assert set(STAGES) - {*stages} <= set(page.ids) and not {*stages} & set(page.ids)
    assert set(page.inner) - {*stages} <= set(page.ids)


def change(file, action):
    notebook = nbformat.read(file, as_version=4)
    action(notebook.cells)
    nbformat.write(notebook, file)


ERROR = new_output("error", ename="ValueError", evalue="a bad value", traceback=[])


def with_error(cells):
    cells[-2].outputs.append(ERROR)


def hidden_error(cells):
    next(cell for cell in cells if "hidden" in cell.source).outputs.append(ERROR)


def killed(cells):
    cells[-2].metadata.papermill.status = "running"


def never_run(cells):
    for cell in cells:
        cell.metadata.pop("papermill")


def remove(place):
    return lambda run: (run/place).unlink()


def overwrite(place, text):
    return lambda run: (run/place).write_text(text)


def change_cells(place, action):
    return lambda run: change(run/place, action)


BROKEN = {
    "no record": (remove("stages/03_vanilla_kd.json"), "03_vanilla_kd has not finished"),
    "no notebook": (remove("notebooks/04_intermediate_kd.ipynb"),
                    "notebooks/04_intermediate_kd.ipynb is missing"),
    "half a notebook": (overwrite("notebooks/05_ptq.ipynb", '{"cells": ['),
                        "notebooks/05_ptq.ipynb is not a notebook"),
    "no notebook at all": (overwrite("notebooks/05_ptq.ipynb", "{}"),
                           "notebooks/05_ptq.ipynb is not a notebook"),
    "an error": (change_cells("notebooks/06_qat.ipynb", with_error), "a bad value"),
    "an error in a hidden cell": (change_cells("notebooks/06_qat.ipynb", hidden_error),
                                  "a bad value"),
    "killed": (change_cells("notebooks/07_pruning.ipynb", killed), "running"),
    "never run": (change_cells("notebooks/07_pruning.ipynb", never_run), "not run"),
    "no run.json": (remove("run.json"), "run.json is missing"),
    "no results": (remove("results/benchmark_results.csv"), "benchmark_results.csv is missing"),
    "no compact results": (remove("results/compact_results.csv"),
                           "compact_results.csv is missing"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_incomplete_run_is_refused_and_the_old_report_stays(run, damage):
    breaks, words = BROKEN[damage]
    before = write_report(run).read_bytes()
    breaks(run)
    with pytest.raises(RunError, match=re.escape(words)) as refusal:
        write_report(run)
    assert "fincompress run --run-dir" in str(refusal.value)
    assert (run/"report.html").read_bytes() == before


def test_refusal_lists_everything(tmp_path):
    with pytest.raises(RunError) as refusal:
        write_report(tmp_path)
    assert all(stage in str(refusal.value) for stage in STAGES)
    assert not list(tmp_path.iterdir())


def test_a_run_of_an_earlier_version_is_refused(run):
    old = run/"checkpoints/student_wide_int8"
    old.mkdir(parents=True)
    with pytest.raises(RunError, match="earlier version"):
        write_report(run)


FORMULAS = [
    FORMULA.strip("$"),
    r"\tilde{h}^{(l)} = \lVert W h - t \rVert_2^2",
    r"\hat{x} = s\left\lfloor \frac{x}{s} \right\rceil",
    r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
    r"a < b \le c > d",
    r"-\frac{1}{\log n}\sum_{j=1}^{n} a_{ij}\log a_{ij}",
    r"\operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right)V",
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_become_mathml(formula):
    assert mathml(formula).startswith("<math")


NOTEBOOKS = sorted((ROOT/"nbs").rglob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_of_the_project_can_be_drawn(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    text = re.sub(r"```.*?```|`[^`\n]*`", "", "\n".join(prose), flags=re.S)
    found = re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text, re.S)
    formulas = [block or inline for block, inline in found]
    assert [formula for formula in formulas if not mathml(formula).startswith("<math")] == []


# In a browser

FRAME = """<iframe src="report.html" style="width:{width}px;height:3000px;border:0" onload="
const d = this.contentDocument;
const height = e => e.getBoundingClientRect().height;
document.title = JSON.stringify({{
  wide: d.documentElement.scrollWidth,
  pictures: [...d.images].every(i => i.naturalWidth > 0),
  nav: d.querySelector('nav').offsetWidth,
  formula: height(d.querySelector('section math[display=block]')),
  scrolling: [...d.querySelectorAll('main > .scroll')].filter(
    e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText.slice(0, 60)),
  folded: ![...d.querySelectorAll('details.code')].some(x => x.open)}})"></iframe>"""


@pytest.fixture
def served(run):
    "The run directory on a loopback server: its address, and the list of paths asked for."
    with loopback(run) as found:
        yield found


@pytest.mark.parametrize("width", [1400, 400])
def test_readable_in_a_browser(run, served, browser, width):
    write_report(run)
    (run/"frame.html").write_text(FRAME.format(width=width))
    with browser.new_page() as page:
        page.goto(f"{served[0]}/frame.html")
        seen = json.loads(page.title())
    assert seen["wide"] <= width, "the page itself must not scroll sideways"
    assert seen["pictures"] and seen["folded"] and seen["formula"] > 20
    if width < 1000:
        assert seen["nav"] > width - 30
    else:
        assert seen["nav"] < 400
        assert seen["scrolling"] == [], "a table of the first page is wider than a screen"


HOSTILE = """<img src="{0}/leak1"><script src="{0}/leak2"></script>
<style>@import url({0}/leak3);</style><iframe src="{0}/leak4"></iframe>"""


def test_nothing_is_loaded_even_if_an_output_asks_for_it(run, served, browser):
    address, asked = served
    hostile = new_output("display_data", {"text/html": HOSTILE.format(address)})
    change(run/"notebooks/01_teacher.ipynb", lambda cells: cells[-2].outputs.append(hostile))
    write_report(run)
    with browser.new_page() as page:
        page.goto(f"{address}/report.html")
        assert "leak1" in page.content()
    assert set(asked) <= {"/report.html", "/favicon.ico"}
