"""The demo in a browser: what it answers, what it refuses, who it serves at once, and that nothing of it leaves the machine."""
import asyncio, json, os, shutil, socket, subprocess, sys, threading, time
from pathlib import Path

import numpy as np, pandas as pd, pytest

from fincompress.app.demo.models import open_models
from fincompress.app.demo.page import EXAMPLES
from fincompress.lib.run.checkpoint import LABELS
from fincompress.lib.run.files import RunError
from fincompress.lib.run.stage import STAGES, stage_file

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT/"outputs/smoke"
WATCHED = """
import os, sys
def watch(event, what):
    host = what[0] if event == "socket.getaddrinfo" else what[1][0] if event == "socket.connect" and isinstance(what[1], tuple) else None
    if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0"):
        with open(os.environ["OUTSIDE"], "a") as file: file.write(f"{event} {host}\\n")
sys.addaudithook(watch)
from fincompress.app.cli import main
main()
"""
HOSTILE = "Orders rose <img src=x onerror=document.title='owned'> & {{costs}} ${1+1} fell, 日本 🚀"


def start(run, folder, *words):
    "The command in a process of its own, whose connections to other machines are noted."
    environment = {**os.environ, "OUTSIDE": str(folder/"outside.txt"), "GRADIO_TEMP_DIR": str(folder/"gradio"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", WATCHED, "demo", str(run), *words], env=environment, text=True, stdout=subprocess.PIPE, stderr=open(folder/"stderr.txt", "w"))

@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("demo")

@pytest.fixture(scope="module")
def run(folder):
    "A copy of the smoke run, of which one model was damaged on the way."
    if not stage_file(SMOKE, STAGES[-1]).exists(): pytest.fail("there is no finished smoke run: make smoke")
    for part in ("checkpoints", "results", "stages"): shutil.copytree(SMOKE/part, folder/"run"/part)
    shutil.copy(SMOKE/"run.json", folder/"run")
    (folder/"run/checkpoints/student_ptq/model.safetensors").write_bytes(b"<b>damaged</b>")
    return folder/"run"

@pytest.fixture(scope="module")
def address(run, folder):
    server = start(run, folder)
    line = server.stdout.readline()
    assert line.startswith("demo: http://127.0.0.1:"), (folder/"stderr.txt").read_text()
    yield line.split()[1]
    server.terminate()
    server.wait(30)

@pytest.fixture(scope="module")
def asked(): return [] # every request of the browser

@pytest.fixture
def opened(browser, address, asked):
    "Opens the page at a width; what the browser asked for and complained of is noted."
    contexts, complaints = [], []
    def opened(width=1400, **options):
        contexts.append(browser.new_context(viewport=dict(width=width, height=900), **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.goto(address)
        page.wait_for_selector("#sentence textarea")
        return page
    yield opened
    for context in contexts: context.close()
    assert complaints == []

def ask(page, text):
    page.fill("#sentence textarea", text)
    page.press("#sentence textarea", "Enter")
    page.wait_for_function("text => document.querySelector('#answers caption')?.innerText.includes(text)", arg=text[:20])
    page.wait_for_selector("#words .words")

def message(page):
    "The message that appears; it is closed again."
    toast = page.locator(".toast-body").first
    toast.wait_for()
    text = toast.inner_text()
    toast.get_by_test_id("toast-close").click()
    toast.wait_for(state="detached")
    return text

def tab(page, name): page.get_by_role("tab", name=name).click()


def test_both_answer_a_sentence(opened):
    page = opened()
    ask(page, "Orders rose by a third.")
    rows = page.locator("#answers tbody tr").all_inner_texts()
    models = [row.split("\n")[0] for row in rows]
    assert models[0] == "Teacher" and {"Student, vanilla KD", "Deployed student, wide, int8", "TF-IDF, linear"} <= {*models}
    for row in page.locator("#answers tbody tr").all():
        shares = [float(text.split()[1].rstrip("%")) for text in row.locator(".numbers span").all_inner_texts()]
        largest = {label for label, share in zip(LABELS, shares) if share == max(shares)} # as shown, rounded
        assert sum(shares) == pytest.approx(100, abs=0.3) and row.locator(".label").inner_text().split("\n")[0] in largest and float(row.locator(".ms").inner_text().split()[0]) > 0
    assert page.locator("#words .words span").count() == 5

def test_what_is_typed_stays_text(opened):
    page = opened()
    ask(page, HOSTILE)
    assert HOSTILE in page.locator("#answers caption").inner_text() and page.title() == "FinCompress"
    assert page.locator("#answers img, #words img").count() == 0 and page.locator("#words .words span").count() == len(HOSTILE.split())

def test_examples_and_choices(opened):
    page = opened()
    page.get_by_role("button", name=EXAMPLES["negative"][0]).click()
    page.wait_for_selector("#words .words")
    assert EXAMPLES["negative"][0] in page.locator("#answers caption").inner_text() and page.input_value("#sentence textarea") == EXAMPLES["negative"][0]
    page.get_by_role("button", name="Which models are asked").click()
    page.get_by_label("Pruned teacher, 30%").check()
    page.get_by_label("Teacher", exact=True).uncheck()
    page.click("#ask")
    page.wait_for_function("document.querySelector('#answers tbody').innerText.includes('Pruned teacher, 30%')")
    assert not page.locator("#answers tbody").inner_text().startswith("Teacher") and "unlike the teacher" not in page.locator("#answers").inner_text()
    for box in page.get_by_role("checkbox").all(): box.uncheck()
    page.click("#ask")
    assert "tick at least one" in message(page)

def test_a_model_that_does_not_open_is_told(opened):
    text = opened().locator("#notices").inner_text()
    assert "Student, int8 after training is not here. checkpoints/student_ptq/model.safetensors is damaged" in text

def test_a_table_of_1000_lines_comes_back(opened, tmp_path):
    page = opened()
    given = pd.DataFrame(dict(id=range(1000), headline=[f'Orders of "unit {i}" rose by {i}%, and costs fell' for i in range(1000)]))
    given.loc[7, "headline"] = ""
    given.to_csv(tmp_path/"mine.csv", index=False)
    tab(page, "Headlines")
    page.set_input_files("#file input[type=file]", tmp_path/"mine.csv")
    page.wait_for_selector("#file .file-preview")
    page.click("#answer-all")
    page.wait_for_selector("#download:not([disabled])")
    with page.expect_download() as download: page.click("#download")
    answered = pd.read_csv(download.value.path(), keep_default_na=False)
    assert download.value.suggested_filename == "answers.csv" and answered.columns.tolist() == ["id", "headline", "sentiment", "negative", "neutral", "positive", "cut"]
    assert len(answered) == 1000 and answered.headline.tolist() == given.headline.tolist() and answered.sentiment[7] == "" and (answered.sentiment.drop(7) != "").all()
    assert "Orders of" in page.locator("#table").inner_text()

def test_pasted_lines(opened):
    page = opened()
    tab(page, "Headlines")
    page.fill("#lines textarea", "Orders rose\n\n  Orders fell <b>again</b>  \n日本 🚀")
    page.click("#answer-all")
    page.wait_for_selector("#download:not([disabled])")
    with page.expect_download() as download: page.click("#download")
    assert pd.read_csv(download.value.path()).text.tolist() == ["Orders rose", "Orders fell <b>again</b>", "日本 🚀"]

def test_what_cannot_be_answered_gets_a_message(opened):
    page = opened()
    page.click("#ask")
    assert "type a sentence first" in message(page)
    page.fill("#sentence textarea", "x"*2**20)
    page.click("#ask")
    assert "1,048,576 characters, and a sentence may have 1,000" in message(page)
    tab(page, "Headlines")
    page.click("#answer-all")
    assert "There is no text in it" in message(page)
    page.fill("#lines textarea", "rose "*209_715)
    page.click("#answer-all")
    assert "1,048,575 characters, and 200,000 may be pasted" in message(page)

WRONG = {"an open quotation mark": (b'text\n"Orders rose\nOrders fell\n', "is no CSV (unexpected end of data)"), "a field too many": (b"text,id\nOrders rose, then fell,1\n", "line 2: 3 fields, and the first line has 2"),
         "no such column": (b"<b>a</b>,b\n1,2\n", "mine.csv has no column named text"), "a picture": (b"\x89PNG\r\n\x1a\n\0", "no text in UTF-8"), "nothing": (b"", "has no column"),
         "too many lines": (b"text\n" + b"Orders rose\n"*5001, "5,001 texts, and 5,000 are answered"), "too many bytes": (b"text\n" + b"x"*2_100_000, "2,000,000 are read")}

@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_gets_a_message(opened, tmp_path, wrong):
    page, (content, words) = opened(), WRONG[wrong]
    (tmp_path/"mine.csv").write_bytes(content)
    tab(page, "Headlines")
    page.set_input_files("#file input[type=file]", tmp_path/"mine.csv")
    page.wait_for_selector("#file .file-preview")
    page.click("#answer-all")
    assert words in message(page)

def test_the_benchmark_is_the_runs_files_as_they_are_now(opened, run):
    page = opened()
    tab(page, "Benchmark")
    page.wait_for_selector("#benchmark img")
    text, pictures = page.locator("#benchmark").inner_text(), page.locator("#benchmark img")
    assert "student_wide_int8" in text and "BERT-base, ONNX int8" in text and pictures.count() == 2
    for picture in pictures.all(): assert picture.evaluate("image => image.naturalWidth") > 500 and "Macro-F1 on test against" in picture.get_attribute("alt")
    file = run/"results/benchmark_results.csv"
    table = pd.read_csv(file)
    table.loc[table.variant == "student_wide_int8", "test_macro_f1"] = 0.98765
    table.to_csv(file, index=False)
    page.reload()
    tab(page, "Benchmark")
    page.wait_for_function("document.querySelector('#benchmark').innerText.includes('0.988')")

@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone(opened, scheme):
    page = opened(400, color_scheme=scheme)
    width = lambda: page.evaluate("document.documentElement.scrollWidth")
    ask(page, HOSTILE + " x"*20 + "y"*200)
    assert width() <= 400
    for name, shown in (("Headlines", "#lines"), ("Benchmark", "#benchmark img")):
        tab(page, name)
        page.wait_for_selector(shown)
        assert width() <= 400, name
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, background.strip("rgb()").split(","))) < 60) == (scheme == "dark")

def test_by_keyboard_alone(opened):
    page = opened()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "TEXTAREA": break
    page.keyboard.type("Orders rose")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#words .words")
    assert "Orders rose" in page.locator("#answers caption").inner_text()


CLIENTS, SECONDS = 50, 30

async def one_client(client, number, until, waits, errors):
    "Ask one sentence after the other, as the page does."
    while time.monotonic() < until:
        begun = time.monotonic()
        try:
            event = (await client.post("call/compare", json=dict(data=[f"Orders of unit {number} rose", ["teacher", "student_wide_int8"]]))).raise_for_status().json()["event_id"]
            said = (await client.get(f"call/compare/{event}")).raise_for_status().text
            if "event: complete" not in said or f"unit {number} rose" not in json.loads(said.rpartition("data: ")[2])[0]: errors.append(said)
        except Exception as error: errors.append(repr(error))
        waits.append(time.monotonic() - begun)

async def clients(address, waits, errors):
    import httpx
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=f"{address}gradio_api/", timeout=120, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(one_client(client, number, time.monotonic() + SECONDS, waits, errors) for number in range(CLIENTS)))

def test_fifty_clients_for_half_a_minute(address, capsys, record_property):
    waits, errors = [], []
    crowd = threading.Thread(target=lambda: asyncio.run(clients(address, waits, errors))) # the browser's own loop runs in this thread
    crowd.start()
    crowd.join()
    p50, p95 = np.percentile(waits, (50, 95))
    record_property("p95_seconds", round(float(p95), 3))
    with capsys.disabled(): print(f"\n{CLIENTS} clients for {SECONDS} s: {len(waits)} answers, median {p50:.2f} s, 95th percentile {p95:.2f} s, {len(errors)} errors")
    assert errors == [] and len(waits) >= CLIENTS

def test_nothing_has_left_the_machine(address, asked, folder):
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert len(asked) > 100 and outside == []
    assert not (folder/"outside.txt").exists(), (folder/"outside.txt").read_text()

def test_no_exception_was_printed_by_the_server(address, folder): assert "Traceback" not in (folder/"stderr.txt").read_text()


# Without a browser

def test_threads_may_share_a_model(run):
    models, refused = open_models(run)
    assert [*refused] == ["student_ptq"] and refused["student_ptq"].startswith("checkpoints/student_ptq/model.safetensors is damaged")
    model, texts, found = models["teacher"], [f"Orders of unit {i} rose" for i in range(20)], []
    expected = model.probabilities(texts).tolist()
    def work():
        for _ in range(5): found.append((model.probabilities(texts).tolist(), model.cut(texts + ["rose "*200])))
    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    assert len(found) == 30 and all(np.allclose(chances, expected) and cut == [False]*20 + [True] for chances, cut in found)

@pytest.mark.parametrize("words, said", [(["nowhere"], "nowhere has no model that opens"), (["run", "--variant", "teacher", "--variant", "student_tiny"], "student_tiny does not open"),
    (["clone"], "teacher: checkpoints/teacher/config.json is missing"), (["run", "--variant", "baseline_tfidf", "--port", "taken"], "choose another with --port")])
def test_refusals(run, tmp_path, monkeypatch, words, said):
    from typer.testing import CliRunner
    from fincompress.app.cli import app
    (tmp_path/"clone/checkpoints/teacher").mkdir(parents=True) # as a run is committed, without weights
    shutil.copy(run/"checkpoints/teacher/checkpoint_info.json", tmp_path/"clone/checkpoints/teacher")
    (tmp_path/"run").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(app, ["demo", *(str(taken.getsockname()[1]) if word == "taken" else word for word in words)])
    assert isinstance(result.exception, RunError) and said in str(result.exception)
