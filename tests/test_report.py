"The report of a run: whole, self-contained, readable in a browser, and refused where a run is not complete."
import json, re, shutil
from html.parser import HTMLParser
from pathlib import Path
import nbformat, pandas as pd, pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from conftest import loopback
from fincompress.app.pages.notebook_html import mathml
from fincompress.app.study.pipeline import execute_notebook
from fincompress.app.results import floor_sentence, results_table
from fincompress.app.pages.report import write_report
from fincompress.lib.run.files import RunError, write_csv, write_json
from fincompress.lib.run.stage import STAGES, stage_file
from fincompress.lib.run.source import project_root

ROOT = project_root()
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
FORMULA = r"$$\mathcal{L} = \alpha T^2\,\mathrm{KL}(p_T \| p_S) + (1-\alpha)\,\mathrm{CE}, \quad p_i = \frac{\exp(z_i/T)}{\sum_j \exp(z_j/T)}$$"
SOURCE = new_notebook(metadata=KERNEL, cells=[
    new_markdown_cell("# A stage\n\n> Its subtitle"),
    new_markdown_cell(f"## Why $T^2$\n\n{FORMULA}\n\n![badge](https://example.org/badge.svg) [data](00_data.ipynb)"),
    new_code_cell("#| hide\nprint('hidden', 'words')"),
    new_code_cell("#| export\nimport sys, pandas as pd, matplotlib.pyplot as plt\ndef plotted(): pass"),
    new_code_cell("epochs = 3 # passes over `train`\nsource = 'hub'\nrun_dir = 'outputs/t4'", metadata={"tags": ["parameters"]}),
    new_code_cell("frame = pd.DataFrame({f'column {i}': [i/7]*3 for i in range(20)}); frame"),
    new_code_cell("import os\nprint('standard output', os.getcwd() + '/outputs'); print('progress', 'bar', file=sys.stderr)"),
    new_markdown_cell("### Curves"), new_code_cell("plt.plot([1, 2]); path = 'figures/kd_curve.png'; plt.show()"),
    new_code_cell("raise SystemError", metadata={"tags": ["skip-execution"]})])

def results(rows):
    names = ["variant", "technique", "num_parameters", "size_bytes", "test_macro_f1", "test_macro_f1_low", "test_macro_f1_high",
             "latency_ms_p50", "latency_ms_p95"]
    return pd.DataFrame(rows, columns=names).assign(delta_macro_f1_vs_floor_low=lambda t: t.test_macro_f1_low - .70)

RESULTS = results([["baseline_tfidf", "linear", 3e4, 2e6, .70, .66, .74, .9, 1.1], ["teacher", "fine-tuned", 2.2e7, 9e7, .90, .87, .93, 20, 25],
                   ["student_ptq", "int8", 1.2e7, 1.5e7, .80, .77, .83, 4, 5], ["student_qat", "int8", 1.2e7, 1.5e7, .65, .61, .69, 4, 5]])

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished run of nine small notebooks, executed as the pipeline executes them."
    folder = tmp_path_factory.mktemp("report")
    run = folder/"outputs/small"
    nbformat.write(SOURCE, folder/"source.ipynb")
    (run/"notebooks").mkdir(parents=True)
    execute_notebook(folder/"source.ipynb", folder/"executed.ipynb", {"epochs": 1, "run_dir": "outputs/small"}, ROOT)
    for stage in STAGES:
        shutil.copy(folder/"executed.ipynb", run/f"notebooks/{stage}.ipynb")
        write_json(stage_file(run, stage), dict(stage=stage, parameters={"epochs": 1, "source": str(folder/"mine.csv"), "seed": 42}, seconds=61.0,
                                                finished="2026-01-01T10:00:00+00:00", summary={"notes": ["Synthetic <sentences>."]}))
    write_json(run/"run.json", dict(profile="smoke", hardware={"cpu": "A processor", "cores": 2}, versions={"python": "3.11"},
                                  source={"commit": "abc", "changed": True}))
    write_csv(run/"results/benchmark_results.csv", RESULTS)
    return run

@pytest.fixture
def run(finished, tmp_path): return shutil.copytree(finished, tmp_path/"outputs/small")

class Page(HTMLParser):
    "Ids, pictures, links inside the page, and everything that a browser would load from elsewhere."
    def __init__(self, text):
        super().__init__()
        self.ids, self.pictures, self.inner, self.outside = [], [], [], re.findall(r"url\((?!['\"]?data:)[^)]*\)|@import[^;]*", text)
        self.feed(text)
    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found: self.ids.append(found["id"])
        if tag == "img": self.pictures.append(found)
        if tag == "a" and found.get("href", "").startswith("#"): self.inner.append(found["href"][1:])
        loads = ["src", "srcset", "data", "poster", "action", "background"] + (["href"] if tag != "a" else [])
        self.outside += [f"{tag} {name}={found[name]}" for name in loads if found.get(name) and not found[name].startswith(("data:", "#"))]

def test_one_file_with_everything_and_nothing_from_outside(run):
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert page.outside == []
    assert "default-src 'none'" in text
    assert len(page.ids) == len(set(page.ids)) and set(page.inner) <= set(page.ids) and set(STAGES) <= set(page.inner)
    assert len(page.pictures) == len(STAGES) and all(p["alt"] == "Curves: kd curve" for p in page.pictures)
    assert text.count("column 19") == len(STAGES) and text.count("<math") >= 2*len(STAGES)
    assert len(text) < 8e6 * len(page.pictures) / 25
    assert not list(run.glob(".*.tmp"))

def test_shows_what_a_reader_wants_and_nothing_else(run):
    text = write_report(run).read_text(encoding="utf-8")
    for gone in ("hidden words", "progress bar", "#|", "injected", str(run), str(run.parents[1]), f"{ROOT}/", str(Path.home()) + "/"):
        assert gone not in text, gone
    assert text.count("<summary>Code: plotted</summary>") == len(STAGES)
    assert text.count("Synthetic &lt;sentences&gt;.") == 1
    assert "<mark>1</mark>" in text and "passes over <code>train</code>" in text and "<mark>…/mine.csv</mark>" in text
    for fact in ("2026-01-01 10:00 UTC", "0:09:09", "smoke", "A processor, 2 cores", "abc with changes", "python 3.11"): assert fact in text, fact
    assert "standard output …/outputs" in text

def test_results_are_the_files_own(run):
    table = results_table(run)
    assert list(table["Variant"]) == list(RESULTS.variant)
    assert table["Size (MB)"][0] == "<strong>2.0</strong>"
    assert table["Macro-F1 on test (95% interval)"][1] == "<strong>0.900</strong> (0.870 to 0.930)"
    assert table["Times smaller"][2] == "6.0" and table["Times faster"][2] == "5.0"
    assert "whole interval of the paired difference: student_ptq." in floor_sentence(run) and "Not above it: student_qat." in floor_sentence(run)

def test_several_seeds(run):
    write_csv(run/"results/benchmark_results.csv", pd.concat([RESULTS.assign(seed=1), RESULTS.assign(seed=2)]))
    assert list(results_table(run)["Seed"]) == ["1"]*4 + ["2"]*4
    assert floor_sentence(run).count("student_qat") == 1
    write_report(run)

def test_without_the_floor_it_says_so(run):
    write_csv(run/"results/benchmark_results.csv", RESULTS[1:])
    assert "This run has no floor" in write_report(run).read_text(encoding="utf-8")

def change(file, action):
    notebook = nbformat.read(file, as_version=4)
    action(notebook.cells)
    nbformat.write(notebook, file)

ERROR = new_output("error", ename="ValueError", evalue="a bad value", traceback=[])
def with_error(cells): cells[-2].outputs.append(ERROR)
def hidden_error(cells): next(c for c in cells if "hidden" in c.source).outputs.append(ERROR)
def killed(cells): cells[-2].metadata.papermill.status = "running"
def never_run(cells): [c.metadata.pop("papermill") for c in cells]

BROKEN = {"no record": (lambda run: stage_file(run, "03_vanilla_kd").unlink(), "03_vanilla_kd has not finished"),
          "no notebook": (lambda run: (run/"notebooks/04_intermediate_kd.ipynb").unlink(), "notebooks/04_intermediate_kd.ipynb is missing"),
          "half a notebook": (lambda run: (run/"notebooks/05_ptq.ipynb").write_text('{"cells": ['), "notebooks/05_ptq.ipynb is not a notebook"),
          "no notebook at all": (lambda run: (run/"notebooks/05_ptq.ipynb").write_text("{}"), "notebooks/05_ptq.ipynb is not a notebook"),
          "an error": (lambda run: change(run/"notebooks/06_qat.ipynb", with_error), "a bad value"),
          "an error in a hidden cell": (lambda run: change(run/"notebooks/06_qat.ipynb", hidden_error), "a bad value"),
          "killed": (lambda run: change(run/"notebooks/07_pruning.ipynb", killed), "running"),
          "never run": (lambda run: change(run/"notebooks/07_pruning.ipynb", never_run), "not run"),
          "no run.json": (lambda run: (run/"run.json").unlink(), "run.json is missing"),
          "no results": (lambda run: (run/"results/benchmark_results.csv").unlink(), "benchmark_results.csv is missing")}

@pytest.mark.parametrize("damage", BROKEN)
def test_incomplete_run_is_refused_and_the_old_report_stays(run, damage):
    breaks, words = BROKEN[damage]
    before = write_report(run).read_bytes()
    breaks(run)
    with pytest.raises(RunError, match=re.escape(words)) as refusal: write_report(run)
    assert "fincompress run --run-dir" in str(refusal.value)
    assert (run/"report.html").read_bytes() == before

def test_refusal_lists_everything(tmp_path):
    with pytest.raises(RunError) as refusal: write_report(tmp_path)
    assert all(stage in str(refusal.value) for stage in STAGES) and not list(tmp_path.iterdir())

@pytest.mark.parametrize("formula", [
    FORMULA.strip("$"), r"\tilde{h}^{(l)} = \lVert W h - t \rVert_2^2", r"\hat{x} = s\left\lfloor \frac{x}{s} \right\rceil",
    r"\begin{aligned} a &= b \\ c &= d \end{aligned}", r"a < b \le c > d", r"-\frac{1}{\log n}\sum_{j=1}^{n} a_{ij}\log a_{ij}",
    r"\operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right)V"])
def test_formulas_become_mathml(formula): assert mathml(formula).startswith("<math")

@pytest.mark.parametrize("notebook", sorted((ROOT/"nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_every_formula_of_the_project_can_be_drawn(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    formulas = [block or inline for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text, re.S)]
    assert [formula for formula in formulas if not mathml(formula).startswith("<math")] == []

# In a browser

FRAME = """<iframe src="report.html" style="width:{width}px;height:3000px;border:0" onload="const d=this.contentDocument;
document.title=JSON.stringify({{wide:d.documentElement.scrollWidth,pictures:[...d.images].every(i=>i.naturalWidth>0),
nav:d.querySelector('nav').offsetWidth,formula:d.querySelector('section math[display=block]').getBoundingClientRect().height,
folded:![...d.querySelectorAll('details.code')].some(x=>x.open)}})"></iframe>"""

@pytest.fixture
def served(run):
    "The run directory on a loopback server: its address, and the list of paths asked for."
    with loopback(run) as found: yield found

@pytest.mark.parametrize("width", [1400, 400])
def test_readable_in_a_browser(run, served, browser, width):
    write_report(run)
    (run/"frame.html").write_text(FRAME.format(width=width))
    with browser.new_page() as page:
        page.goto(f"{served[0]}/frame.html")
        seen = json.loads(page.title())
    assert seen["wide"] <= width, "the page itself must not scroll sideways"
    assert seen["pictures"] and seen["folded"] and seen["formula"] > 20
    assert seen["nav"] > width - 30 if width < 1000 else seen["nav"] < 400

def test_nothing_is_loaded_even_if_an_output_asks_for_it(run, served, browser):
    address, asked = served
    hostile = (f'<img src="{address}/leak1"><script src="{address}/leak2"></script>'
               f'<style>@import url({address}/leak3);</style><iframe src="{address}/leak4"></iframe>')
    change(run/"notebooks/01_teacher.ipynb", lambda cells: cells[-2].outputs.append(new_output("display_data", {"text/html": hostile})))
    write_report(run)
    with browser.new_page() as page:
        page.goto(f"{address}/report.html")
        assert "leak1" in page.content()
    assert set(asked) <= {"/report.html", "/favicon.ico"}
