"""A model in a page: the same answers as from Python, and what a visitor sees and can do.

The page is built once, with its models, and shown by a browser that finds no other machine."""
import csv
import io
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import loopback

from fincompress.app.pages.site import run_sphinx, toctree
from fincompress.app.use.classifier import Classifier
from fincompress.app.web.browser import CLOSE, difference_row
from fincompress.app.web.floor import strongest_ngrams, write_floor_results
from fincompress.app.web.site_parts import with_try_box, write_try_page
from fincompress.app.web.try_page import HARD
from fincompress.app.web.web_folder import (
    cache_folder,
    install_packages,
    run_npm,
    web_assets,
)
from fincompress.lib.model.probabilities import softmax
from fincompress.lib.onnx.packaged import MODELS, packaged_models
from fincompress.lib.run.checkpoint import LABELS
from fincompress.lib.run.files import file_digest
from fincompress.lib.run.source import project_root
from fincompress.lib.text.corpus import synthetic_corpus
from fincompress.lib.text.tfidf import TfidfClassifier

ROOT = project_root()
DEFAULT = "Packaged, narrow"
pytestmark = pytest.mark.skipif(not packaged_models(), reason="no packaged models are here yet")


# Texts


BLOCKS = [
    (0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x60F), (0x620, 0x6FF),
    (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F),
    (0x20A0, 0x20C0), (0x2100, 0x214F), (0x2190, 0x23FF), (0x3000, 0x30FF), (0x4E00, 0x4EFF),
    (0xAC00, 0xACFF), (0xE000, 0xE010), (0xF900, 0xFAFF), (0xFE00, 0xFE6F), (0xFF00, 0xFFEF),
    (0x1D400, 0x1D7FF), (0x1F300, 0x1F6FF), (0x20000, 0x20050), (0x2A700, 0x2A730), (0, 0x1F),
    (0x7F, 0x9F)]
BY_HAND = [
    "[CLS] sales [SEP] fell", "[MASK]", "a"*100, "a"*101, "😀"*101, "é"*101, "up "*400,
    "Profit rose https://x.example/z?q=1 today", "http://t.example/é日本 fell", "HTTPS://X rose",
    "https://a\u00a0rose", "https://a\ufeffrose", "https://a\u0085rose", "https://a\u001crose",
    "\ufeffSales fell", "\u001c Sales fell \u0085", "I\u0307stanbul fell", "ß İI ſ Å ﬁ rose",
    "Sales\ud800 fell", "sales\0fell", "rose "*20_000, "x"*100_000]


def text_of_block(rng, block) -> str:
    "A sentence with words of a block of Unicode."
    letters = "".join(chr(rng.randint(*block)) for _ in range(12))
    return f"Sales rose {letters[:5]} {letters[5:9]}sales{letters[9:]} in Oslo"


@pytest.fixture(scope="module")
def texts():
    "500: of the bundled corpus, of all blocks of Unicode, by hand."
    rng = random.Random(7)
    every = [text_of_block(rng, block) for block in BLOCKS for _ in range(3)]
    corpus = synthetic_corpus(n=1000, seed=5, transfer=0).text.tolist()
    return (BY_HAND + every + corpus)[:500]


# A page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run with a small linear model, and with the committed behaviour tests."
    folder = tmp_path_factory.mktemp("run")
    corpus = synthetic_corpus(n=900, seed=3, transfer=0)
    train, test = (corpus[corpus.split == split] for split in ("train", "test"))
    linear = TfidfClassifier(2, 5).fit(train.text, train.label, C=30, seed=0)
    record = dict(technique="example", metrics={}, hyperparameters={}, inputs={})
    linear.save(folder/"outputs/package/checkpoints/baseline_tfidf", **record)
    (folder/"outputs/package/data").mkdir()
    test.to_csv(folder/"outputs/package/data/test.csv", index=False)
    write_floor_results(folder/"outputs/package", 2000)
    shutil.copy(ROOT/"outputs/package/results/behaviour.csv", folder/"outputs/package/results")
    return folder


@pytest.fixture(scope="module")
def built(run, npm, tmp_path_factory):
    "Front page and page of the site, with everything that they load."
    work = tmp_path_factory.mktemp("site")
    source = work/"source"
    shutil.copytree(ROOT/"docs", source)
    pages = [write_try_page(source, run)]
    page = (source/"try.md").read_text(encoding="utf-8")
    (source/"try.md").write_text(page.replace("/guides/web.ipynb", "/index.md"), encoding="utf-8")
    front = with_try_box("# FinCompress\n\n> Small models\n\nMore.", run)
    (source/"index.md").write_text(f"{front}\n\n{toctree(pages)}", encoding="utf-8")
    run_sphinx(work, ROOT)
    return work/"html"


@pytest.fixture(scope="module")
def asked():
    "The address of every request of the browser."
    return []


@pytest.fixture(scope="module")
def address(built):
    with loopback(built) as (address, _):
        yield f"{address}/"


@pytest.fixture(scope="module")
def opened(browser, address, asked):
    "A function that opens a page; where it complains, the test that asks for complaints fails."
    contexts = []

    def opened(name="try.html", width=1400, before="", **options):
        size = dict(width=width, height=900)
        context = browser.new_context(viewport=size, base_url=address, **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        if before:
            page.add_init_script(before)
        page.goto(name)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def page(opened):
    "A page that tests share."
    return opened()


ANSWERS = """async ([name, texts]) => {
    const { openFloor, openModel } = await import("/_static/web/classifier.js");
    const open = name === "floor" ? openFloor : openModel;
    const model = await open(`/_static/web/${name}/`);
    const answers = [];
    for (const text of texts) answers.push(await model.answer(text));
    await model.close();
    return answers;
}"""


def answers_in(page, name, texts):
    "What a model of the page answers."
    return page.evaluate(ANSWERS, [name, texts])


def rows_of(page):
    "The rows of the table of answers, each as a list of texts."
    cells = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    return page.eval_on_selector_all("[data-part=answers] tbody tr", cells)


def ask(page, text):
    "Type a sentence and press Enter; wait until its words are shown."
    page.fill("#try-sentence", text)
    page.press("#try-sentence", "Enter")
    last = text.split()[-1]
    shown = ("last => document.querySelector('.try-words')?.lastChild.firstChild.textContent"
             " === last")
    page.wait_for_function(shown, arg=last)


# The same answers


def lead(answer):
    "By how much the most probable label leads the next."
    *_, second, best = sorted(answer["scores"].values())
    return best - second


@pytest.mark.parametrize("name", MODELS)
def test_the_page_answers_as_the_package_does(page, texts, name):
    # a lone half of a character cannot travel to the browser: the next test has it
    whole = [text for text in texts if "\ud800" not in text]
    classify = Classifier(name, threads=1)
    native = [classify(text) for text in whole]
    in_page = answers_in(page, name, whole)
    found = difference_row(native, in_page)
    assert found["sentences"] == found["same_cut"] == len(whole) > 490
    assert found["close"] >= 0.99*len(whole)
    assert found["largest_difference"] < 0.05
    # processors round differently, which may decide between two labels that are nearly equal
    moved = [one for one, other in zip(native, in_page) if one["label"] != other["label"]]
    assert len(moved) <= 0.01*len(whole)
    assert all(lead(answer) <= 2*CLOSE for answer in moved)


def test_what_is_read_of_a_text(page):
    read = """async () => {
        const { readablePart } = await import("/_static/web/classifier.js");
        return [readablePart("\\ud800 fell \\u0085\\x1c"), readablePart("😀".repeat(30000)),
            readablePart(" \\ufeff ")];
    }"""
    half, long, mark = page.evaluate(read)
    assert half == ["? fell", False]
    assert long == ["😀"*20_000, True]
    assert mark == ["\ufeff", False]


def test_an_empty_text_is_refused_in_both(page):
    with pytest.raises(ValueError, match="is empty"):
        Classifier("compact_tiny")(" \u2003\n")
    with pytest.raises(Exception, match="the text is empty"):
        answers_in(page, "compact_tiny", [" \u2003\n"])


def test_the_floor_answers_as_in_python(page, run, texts):
    whole = TfidfClassifier.load(run/"outputs/package/checkpoints/baseline_tfidf")
    some = [text for text in texts[:200] if "\ud800" not in text and len(text) < 20_000]
    expected = softmax(strongest_ngrams(whole, 2000).predict_logits(some))
    found = [[*answer["scores"].values()] for answer in answers_in(page, "floor", some)]
    assert np.abs(expected - found).max() < 0.001


def test_words_that_move_an_answer(page):
    text = "Sales rose by 12%, but the company slid into the red."
    explained = """async (text) => {
        const { explain, openModel } = await import("/_static/web/classifier.js");
        return explain(await openModel("/_static/web/compact_wide/"), text);
    }"""
    found = page.evaluate(explained, text)
    words = text.split()
    without = [" ".join(words[:i] + words[i + 1:]) for i in range(len(words))]
    model = Classifier("compact_wide", threads=1).model
    logits = model.one_batch(model.tokenise([text, *without])[0])
    chances = softmax(logits)
    best = chances[0].argmax()
    assert found["label"] == model.labels[best]
    assert [each["word"] for each in found["words"]] == words
    effects = [each["effect"] for each in found["words"]]
    assert np.abs(chances[0, best] - chances[1:, best] - effects).max() < 2*CLOSE


WATCH = """const Memory = WebAssembly.Memory;
globalThis.memories = [];
WebAssembly.Memory = class extends Memory {
    constructor(...given) { super(...given); globalThis.memories.push(this); }
};"""
SIZES = """() => [globalThis.memories.reduce((sum, each) => sum + each.buffer.byteLength, 0)]"""


def test_memory_is_flat_after_a_thousand_sentences(opened):
    page = opened(before=WATCH)
    texts = synthetic_corpus(n=300, seed=9, transfer=0).text.tolist()
    page.evaluate("""async () => {
        const { openModel } = await import("/_static/web/classifier.js");
        globalThis.model = await openModel("/_static/web/compact_tiny/");
    }""")
    answer = "async (texts) => { for (const text of texts) await globalThis.model.answer(text); }"
    session = page.context.new_cdp_session(page)

    def sizes():
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")["usedSize"]
        return page.evaluate(SIZES)[0], heap

    page.evaluate(answer, texts*2)
    wasm, heap = sizes()
    page.evaluate(answer, (texts*4)[:1000])
    wasm_after, heap_after = sizes()
    assert wasm > 10e6
    assert wasm_after == wasm
    assert heap_after < heap + 2e6


# What a visitor sees


def test_a_sentence_is_answered(page):
    ask(page, "Sales fell")
    (row,) = rows_of(page)
    expected = Classifier("compact_narrow")("Sales fell")
    assert row[:2] == [DEFAULT, "negative"]
    shares = [float(number) for number in re.findall(r"\d\.\d{3}", row[2])]
    assert np.abs(np.array(shares) - [*expected["scores"].values()]).max() < CLOSE
    assert re.fullmatch(r"\d+\.\d ms", row[3])
    assert page.locator("[data-part=heard]").inner_text().startswith(f"{DEFAULT}: negative 0.")
    assert page.locator(".try-words > span").count() == 2


def test_the_models_answer_side_by_side(page):
    for box in page.get_by_role("checkbox").all():
        box.check()
    ask(page, "Profit rose by a third")
    names = [row[0] for row in rows_of(page)]
    assert names == ["Packaged, wide", DEFAULT, "Packaged, tiny", "TF-IDF, linear"]
    for box in page.get_by_role("checkbox").all():
        box.set_checked("compact_narrow" in box.get_attribute("value"))
    page.wait_for_function("document.querySelectorAll('[data-part=answers] tbody tr').length == 1")


def test_the_next_sentence_is_answered_while_typing(page):
    ask(page, "Sales fell")
    page.locator("#try-sentence").press_sequentially(" less")
    last = "document.querySelector('.try-words')?.lastChild.innerText.startsWith('less')"
    page.wait_for_function(last)
    assert rows_of(page)[0][0] == DEFAULT


def test_sentences_that_are_hard_on_purpose(page):
    text, _ = HARD["negation"][1][0]
    page.get_by_role("button", name=text).click()
    page.wait_for_function("document.querySelector('.try-words')?.innerText.includes('longer')")
    assert page.input_value("#try-sentence") == text
    shown = page.locator("article").inner_text()
    assert re.search(r"both sentences get the right direction in this share of 200 pairs: "
                     r"Packaged, wide \d+%", shown)
    assert "The behaviour tests have no sentences of this kind" in shown
    assert "What the models are not good at" in shown


def test_what_is_typed_stays_text(page):
    hostile = 'Sales <img src=x onerror="document.title=1"> fell'
    ask(page, hostile)
    assert page.locator("[data-try] img").count() == 0
    assert page.title().startswith("Try it")


def test_many_lines_become_a_table_and_a_file(page):
    lines = ["Sales fell", "  Profit rose, \"sharply\" ", "", "The firm is based in Oslo"]*40
    page.fill("#try-lines", "\n".join(lines))
    page.get_by_role("button", name="Classify the lines").click()
    page.wait_for_selector(".try-many")
    assert "120 lines" in page.locator("[data-part=lines-about]").inner_text()
    assert page.locator(".try-many tbody tr").count() == 100
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "answers.csv"
    text = Path(download.value.path()).read_text(encoding="utf-8")
    rows = [*csv.DictReader(io.StringIO(text))]
    assert [*rows[0]] == ["text", "label", *LABELS, "truncated"]
    assert len(rows) == 120 and rows[1]["text"] == 'Profit rose, "sharply"'
    assert [row["label"] for row in rows[:3]] == ["negative", "positive", "neutral"]


def test_what_cannot_be_answered_gets_a_message(page):
    page.fill("#try-sentence", "  ")
    page.press("#try-sentence", "Enter")
    page.get_by_text("Type a sentence first.").wait_for()
    page.fill("#try-lines", "\n \n")
    page.get_by_role("button", name="Classify the lines").click()
    page.get_by_text("There is no line with text.").wait_for()
    page.evaluate("document.querySelector('#try-lines').value = 'x\\n'.repeat(5001)")
    page.get_by_role("button", name="Classify the lines").click()
    page.get_by_text("These are 5001 lines, and 5000 are answered at a time").wait_for()


def test_the_front_page_has_a_small_box(opened):
    page = opened("index.html")
    page.fill("#try-sentence", "Sales rose by a third")
    page.press("#try-sentence", "Enter")
    page.wait_for_selector("[data-part=answers] tbody tr")
    assert rows_of(page)[0][:2] == [DEFAULT, "positive"]
    page.get_by_role("link", name="More to try").click()
    page.wait_for_url("**/try.html")


# Files


def test_a_file_is_loaded_once_and_checked(opened, asked, address):
    page = opened()
    ask(page, "Sales fell")
    graph = f"{address}_static/web/compact_narrow/model.onnx"
    before = asked.count(graph)
    page.reload()
    ask(page, "Sales rose")
    assert asked.count(graph) == before
    page.evaluate("""async (url) => {
        const cache = await caches.open("fincompress");
        await cache.put(url, new Response("damaged"));
    }""", graph)
    page.reload()
    ask(page, "Sales fell")
    assert asked.count(graph) == before + 1


def test_a_damaged_file_is_refused(opened):
    page = opened()
    damage = "**/compact_narrow/model.onnx"
    page.route(damage, lambda route: route.fulfill(body=b"damaged"))
    page.press("#try-sentence", "Enter")
    page.get_by_text("model.onnx is damaged").wait_for()
    page.unroute(damage)
    ask(page, "Sales fell")
    assert rows_of(page)[0][1] == "negative"


def test_nothing_is_loaded_before_it_is_asked_for(opened, asked):
    before = len(asked)
    page = opened()
    page.wait_for_selector("[data-try] form")
    assert not [url for url in asked[before:] if url.endswith((".onnx", ".wasm", ".tsv"))]


# Any browser, any screen


def test_without_simd_the_page_says_so(opened):
    page = opened(before="WebAssembly.validate = () => false;")
    assert "no WebAssembly with SIMD" in page.get_by_role("alert").first.inner_text()
    assert page.get_by_role("button", name="Classify", exact=True).is_disabled()


def test_without_javascript_the_page_says_so(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("noscript strong").is_visible()
    assert not page.locator("#try-sentence").is_visible()


def test_by_keyboard_alone(opened):
    page = opened()
    page.locator("input[name=model]").first.focus()
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "try-sentence":
            break
    page.keyboard.press("Control+a")
    page.keyboard.type("Orders fell")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".try-words")
    assert rows_of(page)[0][:2] == [DEFAULT, "negative"]
    assert page.complaints == []


def test_every_control_has_a_name(page):
    nameless = """() => [...document.querySelectorAll('[data-try] :is(input, textarea, button)')]
        .filter(each => each.type !== 'hidden' && !each.labels?.length && !each.innerText.trim())
        .map(each => each.outerHTML)"""
    page.get_by_role("button", name="Save as CSV").wait_for()
    assert page.evaluate(nameless) == []
    assert page.get_by_role("progressbar", include_hidden=True).count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone(opened, scheme):
    page = opened(width=400, color_scheme=scheme)
    for box in page.get_by_role("checkbox").all():
        box.check()
    ask(page, "Sales fell " + "y"*200)
    page.fill("#try-lines", "z"*300)
    page.get_by_role("button", name="Classify the lines").click()
    page.wait_for_selector(".try-many")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", shade)[:3])) < 60) == (scheme == "dark")


# A folder of one's own


def test_a_folder_for_a_page_of_ones_own(fincompress, opened, tmp_path):
    said = fincompress("export", "packaged", "compact_tiny", "--to", "web", "--out", tmp_path/"my")
    assert (said.code, said.out.replace("\n", "")) == (0, str(tmp_path/"my"))
    with loopback(tmp_path/"my") as (own_address, own_asked):
        page = opened(f"{own_address}/index.html")
        page.get_by_role("button", name="Classify").click()
        page.wait_for_function(
            "document.querySelector('[role=status]').innerText.includes('by Packaged, tiny')")
        assert page.get_by_role("status").inner_text().startswith("negative (negative 0.9")
        assert page.complaints == []
    assert "/model/model.onnx" in own_asked
    again = fincompress("export", "packaged", "compact_tiny", "--to", "web", "--out", tmp_path/"my")
    assert again.code == 0
    (tmp_path/"my"/"thesis.txt").write_text("not ours")
    refused = fincompress("export", "packaged", "compact_tiny", "--to", "web", "--out",
                          tmp_path/"my")
    assert refused.code != 0 and "holds something" in refused.err
    assert (tmp_path/"my"/"thesis.txt").exists()


def test_a_packaged_model_in_a_folder_of_ones_own(fincompress, tmp_path):
    said = fincompress("export", "packaged", "compact_tiny", "--out", tmp_path/"mine")
    assert said.code == 0, said.err
    answered = fincompress("classify", "--csv", "--model", tmp_path/"mine", "Sales fell")
    assert answered.out.splitlines()[1].startswith("Sales fell,negative")
    again = fincompress("export", "packaged", "compact_tiny", "--out", tmp_path/"mine")
    assert again.code == 1 and "would be replaced" in again.err
    float_form = fincompress("export", "packaged", "compact_tiny", "--to", "torch")
    assert float_form.code == 1 and "give --to onnx or web" in float_form.err


# The scripts


def test_the_scripts_agree_with_their_types(npm):
    "TypeScript reads the comments with types; its package is kept in the user's cache."
    lock = web_assets()/"package-lock.json"
    kept = cache_folder()/f"web-check-{file_digest(lock)[:16]}"
    kept.mkdir(parents=True, exist_ok=True)
    for file in web_assets().iterdir():
        shutil.copy(file, kept)
    if not (kept/"node_modules/typescript").is_dir():
        install_packages(kept, with_tools=True)
    done = run_npm(kept, "run", "check")
    assert done.returncode == 0, done.stdout


def test_the_lock_file_names_no_server():
    text = (web_assets()/"package-lock.json").read_text(encoding="utf-8")
    assert "resolved" not in text and "://" not in re.sub(r'"(url|funding)".*', "", text)
    packages = json.loads(text)["packages"]
    assert {"node_modules/onnxruntime-web", "node_modules/@huggingface/tokenizers"} <= {*packages}


def test_nothing_has_left_the_machine(asked):
    outside = [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert len(asked) > 100
    assert outside == []
