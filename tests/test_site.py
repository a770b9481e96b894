"""The site: every link answers, a browser sees no error and asks no other machine.

What a reader looks for is found, and code and outputs fit their column."""
import json
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from conftest import loopback

from fincompress.app.pages import site as module
from fincompress.app.pages.site import GUIDES, PRODUCT, build_site
from fincompress.app.web.live_figures import LIVE_PAGES
from fincompress.lib.onnx.packaged import packaged_models
from fincompress.lib.run.files import RunError
from fincompress.lib.run.source import project_root
from fincompress.lib.run.stage import STAGES

ROOT = project_root()
REFERENCE = ROOT/"outputs/reference"
HAS_RUN = (REFERENCE/"run.json").exists()
ADDRESS = "http://site/"  # stands for the server in links that are read from files
COLAB = "https://colab.research.google.com/"


class Page(HTMLParser):
    "Ids, links, headings and pictures of a page."

    def __init__(self, file):
        super().__init__()
        self.text = file.read_text(encoding="utf-8")
        self.ids = set()
        self.links = []
        self.pictures = []
        self.titles = 0
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if found.get("id"):
            self.ids.add(found["id"])
        if tag == "img":
            self.pictures.append(found)
        if tag == "h1":
            self.titles += 1
        if found.get("rel") != "canonical":
            self.links += [found[name] for name in ("href", "src") if found.get(name)]


def plain(html):
    "A page's text."
    return re.sub(r"<[^>]+>", "", html)


@pytest.fixture(scope="session")
def built(npm, tmp_path_factory):
    return build_site(ROOT, out=tmp_path_factory.mktemp("site")/"_site")


@pytest.fixture(scope="session")
def pages(built):
    files = [file for file in sorted(built.rglob("*.html")) if "_static" not in file.parts]
    return {file.relative_to(built).as_posix(): Page(file) for file in files}


def own_links(pages):
    "Triples (page, page or file that it links to, fragment) of the links that stay on the site."
    for name, page in pages.items():
        for found in page.links:
            parts = urlsplit(urljoin(ADDRESS + name, found))
            if f"{parts.scheme}://{parts.netloc}/" == ADDRESS:
                target = unquote(parts.path)[1:] or "index.html"
                yield name, target, unquote(parts.fragment)


def test_every_internal_link_answers(built, pages):
    assert len(pages) > 80
    links = set(own_links(pages))
    assert [link for link in links if not (built/link[1]).is_file()] == []
    to_parts = [link for link in links if link[2] and link[1] in pages]
    assert [link for link in to_parts if link[2] not in pages[link[1]].ids] == []


def test_every_page_can_be_reached_from_the_first(pages):
    links = {}
    for name, target, _ in own_links(pages):
        links.setdefault(name, set()).add(target)
    seen = set()
    todo = ["index.html"]
    while todo:
        name = todo.pop()
        seen.add(name)
        todo += links.get(name, set()) & pages.keys() - seen
    assert pages.keys() - seen <= {"search.html", "py-modindex.html", "_modules/index.html"}


def test_a_page_has_one_title(pages):
    reading = [name for name in pages if name not in ("search.html", "report.html")]
    assert [name for name in reading if pages[name].titles != 1] == []


def test_the_sidebar_has_four_parts(pages):
    text = pages["index.html"].text
    captions = ("Study", "Product", "Guides", "Reference")
    places = [text.index(">" + caption + "</span>") for caption in captions]
    assert places == sorted(places)
    for stage in STAGES:
        (number,) = re.findall(rf'href="{stage}\.html"[^>]*>\s*(\d\d) ', text)[:1]
        place = text.index(f'href="{stage}.html"')
        assert number == stage[:2]
        assert (place > places[1]) == (stage in PRODUCT)
    assert all(f'href="guides/{name}.html"' in text for name in GUIDES)


@pytest.mark.skipif(not packaged_models(), reason="no packaged models are here yet")
def test_the_sidebar_begins_with_a_page_to_try(pages):
    text = pages["index.html"].text
    assert text.index('href="try.html"') < text.index(">Study</span>")
    assert "data-try" in text and "data-try" in pages["try.html"].text


@pytest.mark.parametrize("floor, room, notebook", [
    ("lib", "run", "stage"), ("app", "study", "pipeline"), ("lib", "onnx", "runtime")])
def test_rooms_are_nested_lists(pages, floor, room, notebook):
    links = pages[f"{floor}/index.html"].links
    assert f"{room}/index.html" in links and f"{room}/{notebook}.html" in links
    assert f"{notebook}.html" in pages[f"{floor}/{room}/index.html"].links


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_can_be_opened_in_colab(pages, stage):
    found = [link for link in pages[f"{stage}.html"].links if link.startswith(COLAB)]
    assert found == [f"{COLAB}github/fincompress/fincompress/blob/main/nbs/{stage}.ipynb"]
    assert (ROOT/f"nbs/{stage}.ipynb").exists()
    assert pages[f"{stage}.html"].text.count("Set-up on Colab") >= 1


@pytest.mark.skipif(not HAS_RUN, reason="there is no reference run")
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_as_it_was_executed(pages, stage):
    page = pages[f"{stage}.html"]
    file = REFERENCE/f"notebooks/{stage}.ipynb"
    if not file.exists():
        pytest.skip(f"the committed run leaves out {stage}")
    notebook = file.read_text(encoding="utf-8")
    cells = json.loads(notebook)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    drawn = sum("image/png" in output.get("data", {}) for output in outputs)
    shown = [picture for picture in page.pictures
             if "_images/" in picture["src"] and picture["src"].endswith(".png")]
    assert len(shown) == drawn and all(picture["alt"].strip() for picture in shown)
    sizes = [int(picture[side]) for picture in shown for side in ("width", "height")]
    assert all(size > 100 for size in sizes)
    record = json.loads((REFERENCE/f"stages/{stage}.json").read_text(encoding="utf-8"))
    assert all(f">{name}<" in page.text for name in record["parameters"])


@pytest.mark.skipif(HAS_RUN, reason="there is a reference run")
def test_without_a_run_the_site_says_so(built, pages):
    assert "There is no reference run yet" in plain(pages["index.html"].text)
    assert "There is no reference run yet" in plain(pages["run.html"].text)
    assert not (built/"report.html").exists()


def test_no_leftovers_of_notebooks_and_machines(pages):
    folders = (ROOT, Path.home(), tempfile.gettempdir())
    for name, page in pages.items():
        text = plain(page.text)
        if not name.startswith(("app/", "_modules/", "api/")):
            assert not re.search(r"^#\|", text, re.M), name
        assert [folder for folder in folders if f"{folder}/" in text] == [], name
    stages = "".join(pages[f"{stage}.html"].text for stage in STAGES)
    assert stages.count("<math") > 30


def test_reference_of_a_function(built, pages):
    page = pages["api/fincompress.lib.train.training.html"]
    text = plain(page.text)
    assert "fincompress.lib.train.training.fit" in page.ids
    assert "Returns" in text and "Parameters" in text
    sources = [link for link in page.links if "_modules/" in link and link.endswith("#fit")]
    code = (built/"_modules/fincompress/lib/train/training.html").read_text(encoding="utf-8")
    assert sources and "def fit" in plain(code)
    vanilla = pages["03_vanilla_kd.html"].links
    assert "api/fincompress.vanilla_kd.html#fincompress.vanilla_kd.soft_label_loss" in vanilla
    assert "../lib/train/training.html" in page.links


DUMPED = re.compile("object at 0x|typer.models|yaml_implicit_resolvers")


def test_reference_of_a_command_and_of_a_class(pages):
    text = plain(pages["api/fincompress.app.cli.html"].text)
    assert "only: list[str] | None = None" in text
    assert "start – --from: Run this stage and all after it again." in text
    reference = {name: page for name, page in pages.items() if name.startswith("api/")}
    assert [name for name, page in reference.items() if DUMPED.search(page.text)] == []


def test_a_table_that_code_wrote_is_a_table(pages):
    text = re.sub("(?s)<pre.*?</pre>", "", pages["app/pages/readme.html"].text)
    assert "Text to label (ms)</p></th>" in text and "| ---" not in text


def test_every_exported_name_is_documented(pages):
    from fincompress._modidx import d
    names = {name for found in d["syms"].values() for name in found}
    public = {name for name in names if not re.search(r"\._", name)}
    assert public - set().union(*(page.ids for page in pages.values())) == set()


FAULTS = ["[dead](dead_link.md)", "![dead](dead_picture.png)",
          "```{eval-rst}\n.. automodule:: fincompress.dead_module\n```"]


def test_a_warning_is_an_error(tmp_path, monkeypatch):
    faults = [*FAULTS]

    def write_pages(source, *_):
        shutil.copytree(ROOT/"docs", source)
        (source/"index.md").write_text("# Front\n\n" + "\n\n".join(faults))

    def build():
        return build_site(ROOT, tmp_path/"no run", out=tmp_path/"_site", work=tmp_path/"work")

    monkeypatch.setattr(module, "write_pages", write_pages)
    (tmp_path/"_site").mkdir()
    (tmp_path/"_site/index.html").write_text("the last good one")
    with pytest.raises(RunError) as refusal:
        build()
    words = ("dead_link", "dead_picture", "dead_module")
    assert all(word in str(refusal.value) for word in words)
    assert (tmp_path/"_site/index.html").read_text() == "the last good one"
    faults.clear()
    assert "Front" in (build()/"index.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"_site", "work"}


def test_an_unfinished_run_gets_no_site(tmp_path):
    (tmp_path/"run.json").write_text("{}")
    with pytest.raises(RunError, match="is not complete"):
        build_site(ROOT, run_dir=tmp_path, out=tmp_path/"_site")
    assert not (tmp_path/"_site").exists()


# In a browser


@pytest.fixture(scope="module")
def address(built):
    with loopback(built) as (address, _):
        yield f"{address}/"


@pytest.fixture
def tab(browser, address):
    "A tab that notes what goes wrong: errors, answers that are none, requests to other machines."
    context = browser.new_context(viewport=dict(width=1400, height=900), base_url=address)
    tab = context.new_page()
    tab.wrong = []

    def console(message):
        if message.type in ("error", "warning"):
            tab.wrong.append((tab.url, message.text))

    def answered(answer):
        if answer.status >= 400:
            tab.wrong.append((answer.url, answer.status))

    def asked(request):
        if not request.url.startswith((address, "data:", "blob:")):
            tab.wrong.append((tab.url, request.url))

    tab.on("console", console)
    tab.on("pageerror", lambda error: tab.wrong.append((tab.url, str(error))))
    tab.on("response", answered)
    tab.on("request", asked)
    yield tab
    context.close()


CUT = """() => [...document.querySelectorAll('.prev-next-area a')]
    .filter(a => a.scrollWidth > a.clientWidth).map(a => a.innerText)"""
PICTURES = """() => [...document.images]
    .filter(i => !i.alt.trim() || !i.naturalWidth || !i.getBoundingClientRect().width)
    .map(i => i.src)
    .filter(src => !document.querySelector(`[src="${src}"]`)?.closest('nav,dialog'))"""
BOXES = "pre, .cell_output .output, .cell_output .scroll, .pst-scrollable-table-container"
SCROLLING = f"""() => {{
    document.querySelectorAll('.bd-article details').forEach(d => d.open = true);
    return [...document.querySelectorAll('.bd-article')]
        .flatMap(article => [...article.querySelectorAll('{BOXES}')])
        .filter(box => box.clientWidth && box.scrollWidth > box.clientWidth + 1)
        .map(box => `${{box.scrollWidth}} px in ${{box.clientWidth}}: `
            + box.innerText.split('\\n').sort((a, b) => b.length - a.length)[0].slice(0, 80));
}}"""


def browsed(pages):
    return [name for name in pages if not name.startswith("_modules/") and name != "report.html"]


def test_every_page_in_a_browser(tab, pages):
    "No error, no request to another machine, every picture with words, nothing wider than a phone."
    faults = []
    for name in browsed(pages):
        tab.set_viewport_size(dict(width=1400, height=900))
        tab.goto(name)
        faults += [(name, picture) for picture in tab.evaluate(PICTURES)]
        tab.set_viewport_size(dict(width=400, height=800))
        wide = tab.evaluate("document.documentElement.scrollWidth")
        if wide > 400:
            faults.append((name, f"{wide} px wide on a phone"))
        faults += [(name, title, "cut on a phone") for title in tab.evaluate(CUT)]
    assert not faults + tab.wrong, "\n".join(map(str, faults + tab.wrong))


def test_code_and_outputs_fit_their_column(tab, pages):
    "At 1400 px no code block, no output and no table scrolls sideways."
    faults = []
    for name in browsed(pages):
        tab.goto(name)
        faults += [f"{name}: {box}" for box in tab.evaluate(SCROLLING)]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.skipif(not packaged_models(), reason="no packaged models are here yet")
def test_a_model_answers_on_the_front_page(tab):
    tab.goto("index.html")
    tab.fill("#try-sentence", "Sales fell")
    tab.press("#try-sentence", "Enter")
    row = tab.locator("[data-part=answers] tbody tr")
    row.wait_for()
    assert "negative" in row.inner_text() and tab.wrong == []


def test_search_finds_a_function(tab):
    tab.goto("index.html")
    tab.keyboard.press("Control+k")
    tab.keyboard.type("soft_label_loss")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=soft_label_loss*")
    reference = "#search-results a[href*='fincompress.vanilla_kd.soft_label_loss']"
    found = tab.locator(reference).first
    found.wait_for()
    # results appear one by one
    tab.locator("#search-results a[href*='03_vanilla_kd.html']").first.wait_for()
    found.click()
    tab.wait_for_url("**/api/fincompress.vanilla_kd.html**")
    assert tab.locator("[id='fincompress.vanilla_kd.soft_label_loss']").is_visible()
    assert tab.wrong == []


@pytest.mark.skipif(not HAS_RUN, reason="there is no reference run")
@pytest.mark.parametrize("place", LIVE_PAGES)
def test_plots_answer(tab, place):
    tab.goto(f"{Path(place).stem}.html")
    plots = tab.locator("figure.live .live-plot")
    plots.nth(len(LIVE_PAGES[place]) - 1).wait_for()
    assert plots.count() == len(LIVE_PAGES[place])
    assert tab.wrong == []


SHADES = (("body", "backgroundColor"), ("article p", "color"), ("blockquote", "backgroundColor"))


def test_dark_and_light(tab):
    shades = {}
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        tab.goto("03_vanilla_kd.html")
        shades[scheme] = [
            tab.evaluate(f"getComputedStyle(document.querySelector('{what}')).{shade}")
            for what, shade in SHADES]
    assert all(light != dark for light, dark in zip(*shades.values()))


def test_keyboard_and_phone(tab):
    tab.set_viewport_size(dict(width=400, height=800))
    tab.goto("03_vanilla_kd.html")
    menu = tab.locator("button.primary-toggle:visible").first
    menu.focus()
    tab.keyboard.press("Enter")
    inside = tab.get_by_role("link", name="Intermediate", exact=False).first
    inside.wait_for(state="visible")
    inside.press("Enter")
    tab.wait_for_url("**/04_intermediate_kd.html")
    assert tab.wrong == []
