"""Long texts: what is a document, which sentences it has, and what the command says of it."""
import csv
import io
import random
import sys

import pytest
from conftest import contents

from fincompress import Classifier
from fincompress.app.use.document import DOCUMENT_CHARACTERS, split_document
from fincompress.lib.onnx.word_model import save_word_model
from fincompress.lib.run.files import RunError

WEIGHTS = {"rose": (0, 0, 2), "fell": (2, 0, 0), "loss": (3, 0, 0), "board": (0, 1, 0)}
REPORT = """OUTLOOK

Sales rose 3.5% to $4.1 bn. at Acme Corp. in May. Profit
fell. The board will meet.
- The loss of [b]Acme[/b] Ltd. ends
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")/"words"
    save_word_model(place, WEIGHTS)
    return place


@pytest.fixture(scope="module")
def classify(folder):
    return Classifier(folder)


@pytest.fixture
def report(tmp_path, monkeypatch):
    "A document in the working directory."
    monkeypatch.chdir(tmp_path)
    (tmp_path/"report.txt").write_text(REPORT, encoding="utf-8")
    return tmp_path/"report.txt"


# From Python


def test_each_sentence_has_its_own_answer(classify):
    found = classify.document(REPORT)
    texts = [each["text"] for each in found["sentences"]]
    assert texts[1:4] == ["Sales rose 3.5% to $4.1 bn. at Acme Corp. in May.", "Profit fell.",
                          "The board will meet."]
    for sentence, answer in zip(found["sentences"], classify(texts)):
        assert answer.items() <= sentence.items()
        place = REPORT[sentence["start"]:sentence["end"]]
        assert " ".join(place.split()) == sentence["text"]
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["truncated"] == 0
    assert [each["number"] for each in found["strongest"]["negative"]] == [5, 3, 1]
    assert "neutral" not in found["strongest"]


def test_sentences_in_doubt_have_a_share(folder):
    found = Classifier(folder, min_confidence=0.7).document(REPORT)
    assert found["shares"] == {"negative": 0.4, "neutral": 0, "positive": 0.2, "uncertain": 0.4}
    assert len(found["strongest"]["negative"]) == 2


def test_sentences_that_were_cut_are_counted(fincompress, tmp_path, report):
    "In Python and by the command."
    save_word_model(tmp_path/"short", WEIGHTS, max_length=5)
    found = Classifier(tmp_path/"short").document(REPORT)
    cut = [each["number"] for each in found["sentences"] if each["truncated"]]
    assert cut and 1 not in cut and found["truncated"] == len(cut)
    result = fincompress("classify", "--model", "short", "--document", "report.txt")
    assert f"\nsentences longer than the model reads: {len(cut)}\n" in result.out


@pytest.mark.parametrize("given, error, words", [
    (None, TypeError, "a document is a string, not NoneType"),
    (b"Sales rose", TypeError, "not bytes"),
    (["Sales rose"], TypeError, "not list"),
    ("", ValueError, "has no words"),
    (" \n\t", ValueError, "has no words"),
    ("\u200b … !", ValueError, "has no words"),
    ("a"*(DOCUMENT_CHARACTERS + 1), ValueError, "give it in parts"),
])
def test_what_is_no_document_is_refused(classify, given, error, words):
    with pytest.raises(error, match=words):
        classify.document(given)


PARTS = ["a", "B", "1", ".", " ", ",", "!", "-", "•", "(", '"', "’", "%", "$", "\n", "\n\n", "\r\n",
         "\t", "\u200b", "\u00ad", "\0", "\u2028", "\x0c", "日", "。", "🚀", "e\u0301", "…",
         "Corp. ", "U.S. ", "- ", "1. "]


def test_no_word_of_a_document_is_lost():
    "Random texts: sentences are in order, have their place, and hold every letter."
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choice(PARTS) for _ in range(draw.randrange(1, 25)))
        sentences = split_document(text)
        places = [text[each.start:each.end] for each in sentences]
        assert [" ".join(place.split()) for place in places] == [each.text for each in sentences]
        letters = [letter for letter in text if letter.isalnum()]
        assert [letter for letter in "".join(places) if letter.isalnum()] == letters, repr(text)


def test_without_the_extra_the_message_names_it(classify, monkeypatch):
    monkeypatch.setitem(sys.modules, "syntok.segmenter", None)
    with pytest.raises(RunError, match=r'pip install "fincompress\[document\]"'):
        classify.document(REPORT)
    assert classify("Sales rose")["label"] == "positive"


# The command


def test_the_command_sums_up(fincompress, folder, report):
    result = fincompress("classify", "--model", folder, "--document", "report.txt")
    assert result.code == 0 and result.err == ""
    first, *table = result.out.splitlines()
    assert first == "60% negative, 20% neutral, 20% positive (sentences: 5)"
    assert "[b]Acme[/b]" in result.out
    assert max(map(len, table)) <= 80
    words = [line.split("│")[1].strip() for line in table if line.startswith("│")]
    assert words == ["negative"]*3 + ["positive"]


def test_the_command_gives_every_sentence_as_csv(fincompress, folder, classify, report):
    result = fincompress("classify", "--model", folder, "--document", "report.txt", "--csv")
    rows = [*csv.DictReader(io.StringIO(result.out))]
    expected = classify.document(REPORT)["sentences"]
    assert [*rows[0]] == ["number", "start", "end", "text", "label", "negative", "neutral",
                          "positive", "truncated"]
    for name in ("number", "start", "end", "text", "label"):
        assert [row[name] for row in rows] == [str(each[name]) for each in expected]


def test_a_document_without_a_clear_sentence_has_no_table(fincompress, folder, report):
    report.write_text("The board will meet.")
    result = fincompress("classify", "--model", folder, "--document", "report.txt")
    assert result.out == "0% negative, 100% neutral, 0% positive (sentences: 1)\n"


def test_a_file_from_another_system(fincompress, folder, report):
    "A mark of the byte order and other ends of lines change nothing."
    words = ("classify", "--model", folder, "--document", "report.txt")
    expected = fincompress(*words).out
    report.write_bytes(b"\xef\xbb\xbf" + REPORT.replace("\n", "\r\n").encode())
    assert fincompress(*words).out == expected


FILES = { # name → (content, words of the message)
    "empty.txt": (b"", "empty.txt: the document has no words"),
    "blank.txt": ("\u200b\n".encode(), "blank.txt: the document has no words"),
    "report.pdf": (b"%PDF-1.7\n\xe2\xe3\xcf\xd3", "report.pdf is not text in UTF-8: convert it"),
    "wide.txt": (REPORT.encode("utf-16"), "wide.txt is not text in UTF-8"),
    "zeros.txt": (b"\0"*100, "zeros.txt is not text in UTF-8"),
    "long.txt": (b"a "*1_100_000, "long.txt: the document has 2,200,000 characters"),
    "missing.txt": (None, "there is no file missing.txt"),
    ".": (None, "there is no file ."),
}


@pytest.mark.parametrize("name", FILES)
def test_the_command_refuses_what_is_no_document(fincompress, folder, report, name):
    content, said = FILES[name]
    if content is not None:
        (report.parent/name).write_bytes(content)
    before = contents(report.parent)
    result = fincompress("classify", "--model", folder, "--document", name)
    assert result.code == 1 and result.out == ""
    assert result.err.startswith("error: ") and said in result.err
    assert contents(report.parent) == before


def test_a_file_of_50_mb_is_not_even_read(fincompress, folder, report, monkeypatch):
    with open(report, "wb") as file:
        file.truncate(50_000_000)
    monkeypatch.setattr("fincompress.app.use.document.checked_document", None)
    result = fincompress("classify", "--model", folder, "--document", "report.txt")
    assert result.code == 1
    assert "report.txt has 50 MB" in result.err and "cut it into parts" in result.err


def test_sentences_beside_a_document(fincompress, folder, report):
    words = ("classify", "--model", folder, "--document", "report.txt", "Sales rose")
    result = fincompress(*words)
    assert result.code == 1 and result.out == ""
    assert "give sentences or --document FILE, not both" in result.err


def test_the_command_without_the_extra(fincompress, folder, report, monkeypatch):
    monkeypatch.setitem(sys.modules, "syntok.segmenter", None)
    result = fincompress("classify", "--model", folder, "--document", "report.txt")
    assert result.code == 1 and result.out == ""
    assert 'pip install "fincompress[document]"' in result.err
