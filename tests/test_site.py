"The site: every link answers, a browser sees no error and asks no other machine, and what a reader looks for is found."
import json, re, shutil, tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit
import pytest
from conftest import loopback
from fincompress.app.pages import site as module
from fincompress.app.pages.site import build_site
from fincompress.lib.run.files import RunError
from fincompress.lib.run.stage import STAGES
from fincompress.lib.run.source import project_root

ROOT = project_root()
REFERENCE = ROOT/"outputs/reference"
ADDRESS = "http://site/" # stands for the server in links that are read from files

class Page(HTMLParser):
    "Ids, links and pictures of a page."
    def __init__(self, file):
        super().__init__()
        self.text = file.read_text(encoding="utf-8")
        self.ids, self.links, self.pictures = set(), [], []
        self.feed(self.text)
    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found["id"]} if found.get("id") else set()
        if tag == "img": self.pictures.append(found)
        self.links += [found[name] for name in ("href", "src") if found.get(name) and found.get("rel") != "canonical"]

@pytest.fixture(scope="session")
def built(tmp_path_factory): return build_site(ROOT, out=tmp_path_factory.mktemp("site")/"_site")

@pytest.fixture(scope="session")
def pages(built): return {file.relative_to(built).as_posix(): Page(file) for file in sorted(built.rglob("*.html")) if "_static" not in file.parts}

def own_links(pages):
    "Triples (page, page or file that it links to, fragment) of the links that stay on the site."
    for name, page in pages.items():
        for found in page.links:
            parts = urlsplit(urljoin(ADDRESS + name, found))
            if f"{parts.scheme}://{parts.netloc}/" == ADDRESS: yield name, unquote(parts.path)[1:] or "index.html", unquote(parts.fragment)

def test_every_internal_link_answers(built, pages):
    assert len(pages) > 80
    links = set(own_links(pages))
    assert [link for link in links if not (built/link[1]).is_file()] == []
    assert [link for link in links if link[2] and link[1] in pages and link[2] not in pages[link[1]].ids] == []

def test_every_page_can_be_reached_from_the_first(pages):
    links, seen, todo = {}, set(), ["index.html"]
    for name, target, _ in own_links(pages): links.setdefault(name, set()).add(target)
    while todo:
        seen.add(name := todo.pop())
        todo += links.get(name, set()) & pages.keys() - seen
    assert pages.keys() - seen <= {"search.html", "py-modindex.html", "_modules/index.html"}

@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_as_it_was_executed(pages, stage):
    page = pages[f"{stage}.html"]
    cells = json.loads((REFERENCE/f"notebooks/{stage}.ipynb").read_text(encoding="utf-8"))["cells"]
    drawn = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    shown = [picture for picture in page.pictures if "_images/" in picture["src"] and picture["src"].endswith(".png")]
    assert len(shown) == drawn and all(picture["alt"].strip() for picture in shown)
    assert all(int(picture["width"]) > 100 and int(picture["height"]) > 100 for picture in shown)
    colab = next(link for link in page.links if link.startswith("https://colab.research.google.com/"))
    assert colab == f"https://colab.research.google.com/github/fincompress/fincompress/blob/main/nbs/{stage}.ipynb"
    assert (ROOT/f"nbs/{stage}.ipynb").exists()
    used = json.loads((REFERENCE/f"stages/{stage}.json").read_text(encoding="utf-8"))["parameters"]
    assert all(f"<code>{name}</code>" in page.text for name in used)

def test_no_leftovers_of_notebooks_and_machines(pages):
    for name, page in pages.items():
        text = re.sub(r"<[^>]+>", "", page.text)
        if not name.startswith(("app/", "_modules/", "api/")): assert not re.search(r"^#\|", text, re.M), name
        assert [folder for folder in (ROOT, Path.home(), tempfile.gettempdir()) if f"{folder}/" in text] == [], name
    text = "".join(page.text for name, page in pages.items() if "/" not in name)
    assert text.count("<math") > 30

def test_reference_of_a_function(built, pages):
    page = pages["api/fincompress.lib.train.training.html"]
    text = re.sub(r"<[^>]+>", "", page.text)
    assert "fincompress.lib.train.training.fit" in page.ids and "path of a CSV with one row an epoch" in text and "Returns" in text
    source = next(link for link in page.links if "_modules/" in link and link.endswith("#fit"))
    assert "def fit" in re.sub(r"<[^>]+>", "", (built/"_modules/fincompress/lib/training.html").read_text(encoding="utf-8")), source
    assert "api/fincompress.vanilla_kd.html#fincompress.vanilla_kd.soft_label_loss" in pages["03_vanilla_kd.html"].links
    assert "../lib/02_training.html" in page.links

def test_reference_of_a_command_and_of_a_class(pages):
    text = re.sub(r"<[^>]+>", "", pages["api/fincompress.app.cli.html"].text)
    assert "only: list[str] | None = None" in text and "start – --from: Run this stage and all after it again." in text
    assert [name for name, page in pages.items() if name.startswith("api/") and re.search("object at 0x|typer.models|yaml_implicit_resolvers", page.text)] == []

def test_a_table_that_code_wrote_is_a_table(pages):
    text = re.sub("(?s)<pre.*?</pre>", "", pages["app/01_report.html"].text)
    assert "Median latency (ms)</p></th>" in text and "| ---" not in text

def test_every_exported_name_is_documented(pages):
    from fincompress._modidx import d
    names = {name for found in d["syms"].values() for name in found if not re.search(r"\._", name)}
    assert names - set().union(*(page.ids for page in pages.values())) == set()

def test_a_warning_is_an_error(tmp_path, monkeypatch):
    faults = ["[dead](dead_link.md)", "![dead](dead_picture.png)", "```{eval-rst}\n.. automodule:: fincompress.dead_module\n```"]
    def write_pages(source, *_):
        shutil.copytree(ROOT/"docs", source)
        (source/"index.md").write_text("# Front\n\n" + "\n\n".join(faults))
    monkeypatch.setattr(module, "write_pages", write_pages)
    (tmp_path/"_site").mkdir()
    (tmp_path/"_site/index.html").write_text("the last good one")
    with pytest.raises(RunError) as refusal: build_site(ROOT, out=tmp_path/"_site", work=tmp_path/"work")
    assert all(word in str(refusal.value) for word in ("dead_link", "dead_picture", "dead_module"))
    assert (tmp_path/"_site/index.html").read_text() == "the last good one"
    faults.clear()
    page = build_site(ROOT, out=tmp_path/"_site", work=tmp_path/"work")/"index.html"
    assert "Front" in page.read_text() and {path.name for path in tmp_path.iterdir()} == {"_site", "work"}

def test_an_unfinished_run_gets_no_site(tmp_path):
    with pytest.raises(RunError, match="is not complete"): build_site(ROOT, run_dir=tmp_path, out=tmp_path/"_site")
    assert not (tmp_path/"_site").exists()

# In a browser

@pytest.fixture(scope="module")
def address(built):
    with loopback(built) as (address, _): yield f"{address}/"

@pytest.fixture
def tab(browser, address):
    "A tab that notes what goes wrong: errors, answers that are none, and requests to other machines."
    context = browser.new_context(viewport=dict(width=1400, height=900), base_url=address)
    tab = context.new_page()
    tab.wrong = []
    tab.on("console", lambda message: tab.wrong.append((tab.url, message.text)) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: tab.wrong.append((tab.url, str(error))))
    tab.on("response", lambda answer: tab.wrong.append((answer.url, answer.status)) if answer.status >= 400 else None)
    tab.on("request", lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else tab.wrong.append((tab.url, asked.url)))
    yield tab
    context.close()

CUT = "[...document.querySelectorAll('.prev-next-area a')].filter(a => a.scrollWidth > a.clientWidth).map(a => a.innerText)"
PICTURES = """() => [...document.images].filter(i => !i.alt.trim() || !i.naturalWidth || !i.getBoundingClientRect().width).map(i => i.src)
    .filter(src => !document.querySelector(`[src="${src}"]`)?.closest('nav,dialog'))"""

def test_every_page_in_a_browser(tab, pages):
    "No error, no request that leaves the machine, every picture with size and words, nothing wider than a phone."
    faults = []
    for name in (name for name in pages if not name.startswith("_modules/")):
        tab.set_viewport_size(dict(width=1400, height=900))
        tab.goto(name)
        faults += [(name, picture) for picture in tab.evaluate(PICTURES)]
        tab.set_viewport_size(dict(width=400, height=800))
        if (wide := tab.evaluate("document.documentElement.scrollWidth")) > 400: faults.append((name, f"{wide} px wide on a phone"))
        faults += [(name, title, "cut on a phone") for title in tab.evaluate(CUT)]
    assert not faults + tab.wrong, "\n".join(map(str, faults + tab.wrong))

def test_search_finds_a_function(tab):
    tab.goto("index.html")
    tab.keyboard.press("Control+k")
    tab.keyboard.type("soft_label_loss")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=soft_label_loss*")
    found = tab.locator("#search-results a[href*='fincompress.vanilla_kd.soft_label_loss']").first
    found.wait_for()
    tab.locator("#search-results a[href*='03_vanilla_kd.html']").first.wait_for() # results appear one by one
    found.click()
    tab.wait_for_url("**/api/fincompress.vanilla_kd.html**")
    assert tab.locator("[id='fincompress.vanilla_kd.soft_label_loss']").is_visible() and tab.wrong == []

def test_dark_and_light(tab):
    shades = {}
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        tab.goto("03_vanilla_kd.html")
        shades[scheme] = [tab.evaluate(f"getComputedStyle(document.querySelector('{what}')).{which}")
                          for what, which in (("body", "backgroundColor"), ("article p", "color"), ("blockquote", "backgroundColor"))]
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
