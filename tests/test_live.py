"""Figures that answer, and the page of sliders, in a browser.

What a page says is compared with the run's files and with the package's own functions."""
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loopback
from nbformat import writes
from nbformat.v4 import new_markdown_cell, new_notebook

from fincompress.app.pages.readme import FIGURE, FIGURE_WORDS
from fincompress.app.pages.report import executed_stage
from fincompress.app.pages.site import page, run_sphinx, toctree
from fincompress.app.web.feel_page import bits_data, feel_page, teacher_answers, write_feel_page
from fincompress.app.web.live_figures import LIVE_PAGES, add_live_figures, live_html
from fincompress.lib.model.registry import display_name
from fincompress.lib.run.checkpoint import LABELS
from fincompress.lib.run.files import write_text
from fincompress.lib.run.source import project_root
from fincompress.vanilla_kd import gradient_norm, soften

ROOT = project_root()
RUN = ROOT/"outputs/reference"
LINKED = ("03_vanilla_kd", "05_ptq", "07_pruning")  # by the page of sliders
PAGES = ("index", "08_benchmark", "10_world", "feel_it")

if not (RUN/"run.json").exists():
    pytest.skip("there is no reference run", allow_module_level=True)


# A small site: the pages with figures, from the run's own notebooks


def with_figures_only(stage, names):
    "An executed stage with its title, and the cells that save some figures."
    notebook = executed_stage(RUN, stage, ())
    pictures = re.compile("|".join(rf"figures/{name}\.png" for name in names))
    saving = [cell for cell in notebook.cells if pictures.search(cell.source)]
    assert saving, f"{stage} saves none of {names}"
    notebook.cells = [new_markdown_cell(f"# {stage}\n\n> Its figures"), *saving]
    return notebook


def front_page(source):
    "A front page with the README's picture, as the site links it."
    (source/FIGURE).parent.mkdir(parents=True)
    shutil.copy(RUN/FIGURE, source/FIGURE)
    picture = f"![{FIGURE_WORDS}](/{FIGURE})"
    names = [name for name in (*PAGES, *LINKED) if name != "index"]
    return f"# Front\n\nText.\n\n{picture}\n\n{toctree(names)}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "Laid out by Sphinx with the project's settings; a warning is an error."
    work = tmp_path_factory.mktemp("live")
    source = work/"source"
    shutil.copytree(ROOT/"docs", source)
    write_text(source/"index.md", front_page(source))
    for name in LINKED:
        linked = new_notebook(cells=[new_markdown_cell(f"# {name}")])
        write_text(source/f"{name}.ipynb", writes(linked))
    for place, names in LIVE_PAGES.items():
        if place.endswith(".ipynb"):
            notebook = with_figures_only(Path(place).stem, names)
            write_text(source/place, writes(page(notebook, Path(place), source, ROOT)))
    assert write_feel_page(source, RUN) == "feel_it"
    add_live_figures(source, RUN)
    run_sphinx(work, ROOT)
    return work/"html"


@pytest.fixture(scope="module")
def address(built):
    with loopback(built) as (address, _):
        yield address


@pytest.fixture
def opened(browser, address):
    "A function that opens a page; none may complain, or ask another machine."
    contexts = []
    wrong = []

    def console(message):
        if message.type in ("error", "warning"):
            wrong.append(message.text)

    def asked(request):
        if not request.url.startswith((address, "data:", "blob:")):
            wrong.append(request.url)

    def opened(name, width=1400, **options):
        context = browser.new_context(viewport=dict(width=width, height=900), **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.on("request", asked)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", console)
        tab.on("response", lambda answer: answer.status >= 400 and wrong.append(answer.url))
        tab.goto(f"{address}/{name}.html")
        if options.get("java_script_enabled", True):
            tab.wait_for_selector(".live-plot")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


# Score against cost


def results(name):
    return pd.read_csv(RUN/f"results/{name}.csv")


def said_of(row):
    "What a point says."
    score = "random weights, a speed and no score"
    if row.test_macro_f1 == row.test_macro_f1:
        interval = f"({row.test_macro_f1_low:.3f} to {row.test_macro_f1_high:.3f})"
        score = f"macro-F1 {row.test_macro_f1:.3f} {interval}"
    return f"{score} · {row.size_bytes/1e6:.1f} MB · {row.latency_ms_p50:.2f} ms"


def labels(figure):
    options = figure.get_by_role("option").all()
    return [option.get_attribute("aria-label") for option in options]


@pytest.mark.parametrize("name, table, column", [
    ("index", "compact_results", "latency_ms_p50"),
    ("10_world", "compact_results", "latency_ms_p50"),
    ("08_benchmark", "benchmark_results", "latency_ms_p50")])
def test_points_say_what_the_run_measured(opened, name, table, column):
    figure = opened(name).locator("figure.live").first
    rows = results(table).sort_values(column)
    expected = [f"{display_name(row.variant)}: {said_of(row)}" for row in rows.itertuples()]
    assert labels(figure) == expected
    figure.locator("summary").click()
    written = figure.locator("tbody tr").all_inner_texts()
    for row in rows.itertuples():
        (found,) = [text for text in written if text.startswith(display_name(row.variant) + "\t")]
        assert found.endswith(f"{row.size_bytes/1e6:.1f}\t{row.latency_ms_p50:.2f}")


def test_each_figure_takes_the_place_of_its_own_picture(opened):
    "Pictures of one cell share their words; the order tells them apart."
    world = opened("10_world")
    hidden = "image => getComputedStyle(image).visibility"
    images = world.locator("article img[alt*='compact score']").all()
    assert [image.evaluate(hidden) for image in images] == ["hidden", "visible"]
    benchmark = opened("08_benchmark")
    titles = benchmark.locator(".live figcaption strong").all_inner_texts()
    assert titles == ["Score against time.", "Score against size."]
    axes = benchmark.locator(".live-plot").all_text_contents()
    assert "milliseconds" in axes[0] and "MB" in axes[1]


def test_the_keyboard_goes_from_point_to_point(opened):
    tab = opened("index")
    rows = results("compact_results").sort_values("latency_ms_p50").reset_index()
    radio = tab.get_by_role("radio", name="Time")
    radio.focus()
    tab.keyboard.press("Tab")
    said = tab.locator(".live-said")
    for place in (0, 1, 2):
        row = rows.loc[place]
        assert said.inner_text() == f"{display_name(row.variant)}\n{said_of(row)}"
        tab.keyboard.press("ArrowRight")
    tab.keyboard.press("End")
    assert said.inner_text().startswith(display_name(rows.variant.iloc[-1]))
    tab.keyboard.press("Shift+Tab")
    assert said.inner_text().startswith("Point at a model")
    assert tab.locator("[aria-selected=true]").count() == 0


def test_mouse_and_finger(opened):
    tab = opened("index")
    point = tab.locator("[role=option] circle").nth(2)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    near = (box["x"] + box["width"]/2 + 12, box["y"] + box["height"]/2)
    tab.mouse.move(*near)
    tab.locator("[aria-selected=true]").wait_for()
    name = tab.locator("[aria-selected=true]").get_attribute("aria-label").partition(":")[0]
    assert tab.locator(".live-said").inner_text().startswith(name)
    tab.mouse.click(*near)
    tab.mouse.move(5, 5)
    assert tab.locator(".live-said").inner_text().startswith(name)  # it was chosen


def test_a_finger_on_a_phone(opened):
    phone = opened("index", width=400, has_touch=True)
    assert phone.evaluate("document.documentElement.scrollWidth") == 400
    said = phone.locator(".live-said")
    point = phone.locator("[role=option] circle").nth(1)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    phone.touchscreen.tap(box["x"] + box["width"] + 8, box["y"])
    chosen = phone.locator("[aria-selected=true]")
    chosen.wait_for()
    assert said.inner_text().startswith(chosen.get_attribute("aria-label").partition(":")[0])
    name = display_name("compact_wide")
    phone.get_by_role("button", name=name).tap()
    phone.locator(f"[aria-selected=true][aria-label^='{name}']").wait_for()
    assert said.inner_text().startswith(name)


def test_the_cost_can_be_size(opened):
    tab = opened("index")
    tab.get_by_role("radio", name="Size on disk").check()
    rows = results("compact_results").sort_values("size_bytes", kind="stable")
    figure = tab.locator("figure.live")
    names = [label.partition(":")[0] for label in labels(figure)]
    assert names == [display_name(name) for name in rows.variant]
    assert "size on disk (MB)" in tab.locator(".live-plot").text_content()


NAMES = """plot => [...plot.querySelectorAll('.live-name')].map(text => {
    const {x, y, width, height} = text.getBBox();
    return [x, x + width, y, y + height]; })"""


@pytest.mark.parametrize("name, table, count", [
    ("index", "compact_results", 1), ("08_benchmark", "benchmark_results", 2)])
def test_names_cover_neither_one_another_nor_the_edge(opened, name, table, count):
    plots = opened(name).locator(".live-plot").all()
    assert len(plots) == count
    for plot in plots:
        boxes = np.array(plot.evaluate(NAMES))
        assert len(boxes) == len(results(table))
        assert boxes[:, 0].min() >= 0 and boxes[:, 1].max() <= plot.bounding_box()["width"]
        for i, (left, right, top, bottom) in enumerate(boxes):
            others = np.delete(boxes, i, 0)
            across = np.minimum(right, others[:, 1]) - np.maximum(left, others[:, 0])
            down = np.minimum(bottom, others[:, 3]) - np.maximum(top, others[:, 2])
            assert not ((across > 1) & (down > 3)).any()  # a line's box is higher than its letters


SHADE = "getComputedStyle(document.querySelector('[aria-label^=\"Teacher:\"]')).color"


def brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3]))/3


def test_black_is_seen_on_a_dark_page(opened):
    shades = {}
    for scheme in ("light", "dark"):
        tab = opened("index", color_scheme=scheme)
        behind = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = [brightness(colour) for colour in (tab.evaluate(SHADE), behind)]
    assert shades["light"][0] < 60 and shades["light"][1] > 200
    assert shades["dark"][0] > shades["dark"][1] + 60


def test_without_a_script_and_on_paper_the_picture_stays(opened):
    plain = opened("index", java_script_enabled=False)
    image = plain.locator(f"img[alt='{FIGURE_WORDS}']")
    assert image.is_visible() and image.bounding_box()["width"] > 300
    assert plain.locator("figure.live").count() == 0
    paper = opened("index")
    image = paper.locator(f"img[alt='{FIGURE_WORDS}']")
    assert not image.is_visible()
    paper.emulate_media(media="print")
    assert image.is_visible() and image.bounding_box()["width"] > 300
    assert not paper.locator("figure.live").is_visible()


def test_a_name_cannot_end_the_data():
    figures = {"plot": dict(points=[dict(name="</script><img src=x onerror=alert(1)>")])}
    html = live_html(figures, ["plot"])
    assert "<img" not in html and html.count("</script>") == 2


# The page of sliders


def slide(part, name, value):
    "Move a slider by the keyboard: to its start, then step by step."
    slider = part.get_by_role("slider", name=name)
    slider.focus()
    slider.press("Home")
    step = float(slider.get_attribute("step"))
    for _ in range(round((value - float(slider.get_attribute("min")))/step)):
        slider.press("ArrowRight")
    assert float(slider.input_value()) == pytest.approx(value)


def numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", text)]


def test_temperature_is_what_the_package_computes(opened):
    part = opened("feel_it").locator("#feel-temperature")
    nothing = torch.zeros(1, 3)
    for place, answer in enumerate(teacher_answers(RUN)):
        part.get_by_role("combobox").select_option(str(place))
        teacher = torch.tensor([answer["logits"]])
        cold = gradient_norm(1.0, False, nothing, teacher)
        for temperature in (1.0, 4.0, 10.0):
            slide(part, "Temperature", temperature)
            said = part.locator(".live-said").inner_text()
            norm = gradient_norm(temperature, False, nothing, teacher)
            share = soften(teacher, temperature).max().item()
            expected = [temperature, share, 1, soften(teacher, 1.0).max().item(), norm]
            if temperature > 1:
                expected += [cold/norm, 1, norm*temperature**2]
            assert numbers(said.replace("T²", "T")) == pytest.approx(expected, rel=0.01, abs=1e-3)


def test_equal_logits_have_no_gradient(opened):
    part = opened("feel_it").locator("#feel-temperature")
    for label in LABELS:
        slide(part, f"Logit, {label}", -4.9)
    assert "no gradient" in part.locator(".live-said").inner_text()


def test_bits_are_what_numpy_computes(opened):
    part = opened("feel_it").locator("#feel-bits")
    row = np.array(bits_data()["row"])
    for bits in range(2, 9):
        slide(part, "Bits", bits)
        levels = 2**(bits - 1) - 1
        integers = np.rint(row*levels/np.abs(row).max())
        error = np.sqrt(np.mean((row - integers*np.abs(row).max()/levels)**2))
        share = 100*error/np.sqrt(np.mean(row**2))
        zeros = 100*np.mean(integers == 0)
        said = part.locator(".live-said").inner_text()
        found = numbers(said)
        assert found[:3] == [bits, levels, levels]
        assert found[3:5] == pytest.approx([error, share], rel=0.005)  # three digits are shown
        assert abs(found[5] - zeros) <= 0.5
        assert ("project" in said) == (bits == 7)


def test_heads_are_what_the_run_measured(opened):
    part = opened("feel_it").locator("#feel-pruning")
    table = results("pruning")
    against = results("pruning_against_control").set_index(["criterion", "round"])
    for number, rows in table.groupby("round"):
        slide(part, "Heads", number)
        written = part.locator("tbody tr").all_inner_texts()
        assert len(written) == len(rows)
        for row in rows[rows.criterion != "control"].itertuples():
            (text,) = [t for t in written if t.startswith(display_name(row.criterion) + "\t")]
            score, low, high = row.val_macro_f1, row.val_macro_f1_low, row.val_macro_f1_high
            assert f"{score:.3f} ({low:.3f} to {high:.3f})" in text
            if number:
                delta = against.loc[(row.criterion, number)].delta
                assert f"\t{delta:+.3f} (".replace("-", "−") in text
        said = part.locator(".live-said").inner_text()
        assert f"{rows.heads_left.min()} left" in said


def test_the_sliders_on_a_phone_and_in_the_dark(opened):
    tab = opened("feel_it", width=400, color_scheme="dark")
    assert tab.evaluate("document.documentElement.scrollWidth") == 400
    for slider in tab.get_by_role("slider").all():
        assert slider.bounding_box()["width"] > 200
        assert slider.get_attribute("aria-valuetext")
    assert tab.locator(".live-plot[role=img][aria-label]").count() == 5


def test_the_sliders_need_a_script_and_say_so(opened):
    tab = opened("feel_it", java_script_enabled=False)
    assert tab.get_by_text("This figure is drawn by a script").count() == 3
    assert tab.get_by_text("This figure is drawn by a script").first.is_visible()


def test_a_run_without_pruning_has_no_such_part(tmp_path):
    text = feel_page(tmp_path)
    assert "feel-bits" in text and "feel-pruning" not in text and "Fewer heads" not in text
    assert "a made-up answer" in text
