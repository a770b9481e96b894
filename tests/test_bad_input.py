"""Wrong input: one clear message, a failing exit code, and earlier results left as they were."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from fincompress.data import stratified_parts
from fincompress.lib.run.checkpoint import read_info
from fincompress.lib.run.files import RunError, file_digest, files_below, write_json, write_text
from fincompress.lib.run.stage import STAGES, Stage, refuse_former_names
from fincompress.lib.text.sources import Reading, read_sources
from fincompress.lib.text.tables import read_table

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT/"outputs"/"smoke"
GOOD = "Sales rose,positive\nProfit fell,negative\nIt makes pumps,neutral\n"
NO_HUB = dict(HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    "A finished run, copied from the smoke study."
    finished = SMOKE/f"stages/{STAGES[-1]}.json"
    assert finished.exists(), "the smoke study is missing: run `make smoke` first"
    folder = tmp_path_factory.mktemp("run")/"run"
    shutil.copytree(SMOKE, folder, ignore=shutil.ignore_patterns("unfinished", ".lock"))
    return folder


def state(folder) -> dict[str, str]:
    "Digests of a run's files, without what every command writes."
    digests = {}
    for path in files_below(folder):
        place = path.relative_to(folder)
        if "unfinished" not in place.parts and path.name not in (".lock", "run.json"):
            digests[place.as_posix()] = file_digest(path)
    return digests


def run(run_dir, *words, **environment):
    "`fincompress run` of the smoke profile on a run directory."
    command = [Path(sys.executable).with_name("fincompress"), "run", "--profile", "smoke",
               "--run-dir", run_dir, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300,
                          env={**os.environ, **environment})


def refused(run_dir, *words, **environment) -> str:
    "The message of a run that must fail and leave the earlier results as they were."
    before = state(run_dir)
    result = run(run_dir, *words, **environment)
    assert result.returncode not in (0, None), result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    assert state(run_dir) == before
    return result.stderr


# Tables


def table_of(rows: str, encoding="utf-8") -> bytes:
    "A CSV file with three good rows and some more."
    return f"text,label\n{GOOD}{rows}".encode(encoding)


CSV = { # case → (content, words of the message)
    "empty file": (b"", ["is empty"]),
    "unknown label": (table_of("Shares flat,bullish\n"),
                      ["row 5", "'bullish' is unknown", "negative, neutral, positive"]),
    "missing column": (b"sentence,label\nSales rose,positive\n",
                       ["no column text", "name the columns"]),
    "another encoding": (table_of("", "utf-16"), ["zero bytes", "save it as UTF-8"]),
    "missing text": (table_of(",positive\n"), ["row 5", "the text is missing"]),
    "empty string": (table_of('"  ",positive\n'), ["row 5", "the text is missing"]),
    "missing label": (table_of("Shares flat,\n"), ["row 5", "label '' is unknown"]),
    "NaN label": (table_of("Shares flat,nan\n"), ["row 5", "label 'nan' is unknown"]),
    "50,000 words": (table_of(f"{'profit ' * 50_000},positive\n"),
                     ["row 5", "characters, more than max_characters"]),
    "too small to split": (table_of(""), ["too few sentences to split by class", "1 negative"]),
    "too many fields": (table_of("Sales, again,fell,negative\n"), ["cannot be read as a table"]),
    "names of columns alone": (b"text,label\n", ["has no rows"]),
}


@pytest.mark.parametrize("case", ["unknown label", "too small to split"])
def test_a_bad_table_in_a_run(case, run_dir, tmp_path):
    content, expected = CSV[case]
    path = tmp_path/"own.csv"
    path.write_bytes(content)
    message = refused(run_dir, "--only", "data", "-p", f"source={path}")
    assert all(words in message for words in ["00_data", *expected]), message


@pytest.mark.parametrize("case", [case for case in CSV if case != "too small to split"])
def test_a_bad_table(case, tmp_path):
    content, expected = CSV[case]
    path = tmp_path/"own.csv"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        read_sources(str(path), Reading(max_characters=20_000))
    assert all(words in str(caught.value) for words in ["own.csv", *expected]), caught.value


@pytest.mark.parametrize("few", [3, 4])
def test_a_class_that_is_too_small_for_both_parts(few):
    labels = [0]*60 + [1]*40 + [2]*few
    with pytest.raises(RunError, match="cannot be split by class"):
        stratified_parts(pd.DataFrame(dict(label=labels)), 0.15, 0.15, seed=42)


LINES = { # case → (line of JSON, words of the message)
    "number": ('{"text": 12, "label": 1}', ["row 2", "not text but int"]),
    "missing text": ('{"label": 1}', ["row 2", "the text is missing"]),
    "null label": ('{"text": "Sales fell", "label": null}', ["row 2", "label None is unknown"]),
    "no JSON": ('{"text": ', ["cannot be read as a table"]),
}


@pytest.mark.parametrize("case", LINES)
def test_bad_json_lines(case, tmp_path):
    "Rows are the file's lines here, since it has no row of names."
    line, expected = LINES[case]
    path = tmp_path/"own.jsonl"
    path.write_text('{"text": "Sales rose", "label": 2}\n' + line + "\n")
    with pytest.raises(RunError) as caught:
        read_table(path)
    assert all(words in str(caught.value) for words in ["own.jsonl", *expected]), caught.value


@pytest.mark.parametrize("name", ["own.csv", "own[1].csv", "own.txt"])
def test_text_is_text(name, tmp_path):
    "What looks like a missing value, a number or a date, in a file of any name."
    texts = ["NA", "null", "12", "1e5", "2026-01-01", " spaced ", 'quoted "twice"']
    rows = "".join('"{}",1,\n'.format(text.replace('"', '""')) for text in texts)
    (tmp_path/name).write_text(f"text,label,comment\n{rows}")
    assert read_table(tmp_path/name).text.tolist() == texts


def test_reading_leaves_nothing_behind(tmp_path):
    "The cache of `datasets` is temporary, and no other one is written."
    (tmp_path/"own.csv").write_bytes(table_of(""))
    program = ("from fincompress.lib.text.tables import read_table; "
               f"print(len(read_table({str(tmp_path/'own.csv')!r})))")
    home = tmp_path/"home"
    temporary = tmp_path/"temporary"
    home.mkdir()
    temporary.mkdir()
    environs = {**os.environ, "HOME": str(home), "HF_HOME": str(home/"hf"),
                "TMPDIR": str(temporary)}
    result = subprocess.run([sys.executable, "-c", program], env=environs, cwd=ROOT,
                            capture_output=True, text=True)
    assert result.stdout == "3\n", result.stderr
    assert result.stderr == ""
    assert files_below(temporary) == []
    assert not (home/"hf").exists() or files_below(home/"hf") == []


# Sources and backbones


def test_a_missing_source(run_dir, tmp_path):
    message = refused(run_dir, "--only", "data", "-p", f"source={tmp_path/'nothing.csv'}")
    assert "neither a folder nor a file" in message


def test_a_folder_without_data(run_dir, tmp_path):
    message = refused(run_dir, "--only", "data", "-p", f"source={tmp_path}")
    assert "has no labelled data" in message


def test_a_parquet_file_that_is_none(run_dir, tmp_path):
    path = tmp_path/"own.parquet"
    path.write_bytes(b"not a parquet file")
    message = refused(run_dir, "--only", "data", "-p", f"source={path}")
    assert "cannot be read as a table" in message


@pytest.mark.parametrize("source", ["phrasebank", "you/headlines"])
def test_an_unreachable_hub(source, run_dir):
    message = refused(run_dir, "--only", "data", "-p", f"source={source}", **NO_HUB)
    assert "cannot be reached" in message
    assert "run offline" in message


def test_a_published_source_without_its_file(run_dir):
    message = refused(run_dir, "--only", "data", "-p", "source=sentfin")
    assert "needs the file sentfin_train.csv or SEntFiN.csv" in message


def own_table(path, rows: range):
    "A table of 30 or more sentences of all three classes."
    lines = [f"Sentence number {i} of a table,{i % 3}" for i in rows]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


def test_a_source_that_contains_another(run_dir, tmp_path):
    tables = [own_table(tmp_path/"all.csv", range(60)), own_table(tmp_path/"some.csv", range(30))]
    names = ", ".join(map(str, tables))
    message = refused(run_dir, "--only", "data", "-p", f"source=[{names}]")
    assert "the source some is wholly contained in all" in message


def test_a_foreign_set_that_overlaps(run_dir, tmp_path):
    own = own_table(tmp_path/"own.csv", range(60))
    foreign = own_table(tmp_path/"foreign.csv", range(50, 90))
    values = ["-p", f"source={own}", "-p", f"foreign={foreign}"]
    message = refused(run_dir, "--only", "data", *values)
    assert "(10 of foreign)" in message and "remove_overlap" in message


def test_a_foreign_set_from_which_models_learn(run_dir, tmp_path):
    own = own_table(tmp_path/"own.csv", range(60))
    message = refused(run_dir, "--only", "data", "-p", f"source={own}", "-p", f"foreign={own}")
    assert "models learn from own, so it is no foreign set" in message


def test_groups_that_given_tests_would_tear(run_dir, tmp_path):
    own = own_table(tmp_path/"own.csv", range(60))
    tests = own_table(tmp_path/"tests.csv", range(60, 90))
    message = refused(run_dir, "--only", "data", "-p", f"source={own}", "-p",
                      f"test_source={tests}", "-p", "group_near_duplicates=true")
    assert "group_near_duplicates has no effect on test sentences that are given" in message


def test_labels_that_are_not_the_three(run_dir, tmp_path):
    path = tmp_path/"own.csv"
    path.write_text("text,label\nSales rose,bullish\n")
    names = "label_names={own: {bearish: negative}}"
    message = refused(run_dir, "--only", "data", "-p", f"source={path}", "-p", names)
    assert "the label 'bullish' is unknown; labels are bearish" in message


def test_an_unreachable_backbone(run_dir):
    message = refused(run_dir, "--only", "teacher", "-p", "backbone=ProsusAI/finbert", **NO_HUB)
    assert "01_teacher" in message
    assert "cannot be reached" in message


def test_a_backbone_that_is_no_bert(run_dir, tmp_path):
    (tmp_path/"config.json").write_text('{"model_type": "roberta"}')
    message = refused(run_dir, "--only", "teacher", "-p", f"backbone={tmp_path}")
    assert "choose a backbone of model_type 'bert'" in message


# Runs


def test_a_damaged_checkpoint_is_refused(run_dir, tmp_path):
    "A file that was changed after its stage wrote it."
    broken = tmp_path/"run"
    shutil.copytree(run_dir, broken)
    weights = broken/"checkpoints/student_vanilla_kd/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    message = refused(broken, "--only", "ptq", "--force")
    assert "was changed after 03_vanilla_kd wrote it" in message
    assert "run 03_vanilla_kd again" in message


def test_a_stage_without_its_inputs(tmp_path):
    "The message has the command that runs what is missing."
    fresh = tmp_path/"fresh"
    result = run(fresh, "--only", "vanilla_kd")
    assert result.returncode == 1
    assert "run 00_data first" in result.stderr
    words = " ".join(result.stderr.split())
    command = f"fincompress run --profile smoke --run-dir {fresh} --only 00_data --only 01_teacher"
    assert command.replace(" ", "") in words.replace(" ", "")


def test_a_notebook_opened_alone(tmp_path):
    "Without any run, the values are those of the notebooks, and so is the profile."
    scope = dict(run_dir=tmp_path/"run", epochs=1)
    with pytest.raises(RunError, match="run 00_data first") as caught:
        Stage("01_teacher", scope, needs=["00_data"])
    assert "--profile t4" in str(caught.value)


@pytest.mark.parametrize("words, expected", [
    (["--profile", "colab"], "profile"),
    (["-p", "epoch=3"], "epochs"),
    (["-p", "teacher.epochs=many"], "whole number"),
])
def test_a_wrong_word_stops_before_anything_runs(words, expected, run_dir):
    assert expected in refused(run_dir, *words)


def test_a_run_directory_that_cannot_be_written(tmp_path):
    (tmp_path/"file").write_text("")
    result = run(tmp_path/"file"/"run", "--only", "data")
    assert result.returncode == 1
    assert "cannot work in" in result.stderr
    assert "--run-dir" in result.stderr


# Runs and models of an earlier version


def former_run(folder):
    "A run directory as the version with nine stages left it, as far as it is looked at."
    record = dict(model_name="student_narrow_int8", files={})
    write_json(folder/"checkpoints/student_narrow_int8/checkpoint_info.json", record)
    write_text(folder/"results/peers.csv", "name,macro_f1\n")
    outputs = {"results/peers.csv": file_digest(folder/"results/peers.csv")}
    write_json(folder/"stages/08_benchmark.json", dict(stage="08_benchmark", outputs=outputs))
    write_json(folder/"run.json", dict(profile="local", overrides=[], parameters={}))
    return folder


def test_a_run_of_an_earlier_version(tmp_path):
    "It is refused by every stage, with the new names and what to do."
    old = former_run(tmp_path/"old")
    with pytest.raises(RunError, match="made by an earlier version") as caught:
        Stage("01_teacher", dict(run_dir=old))
    message = str(caught.value)
    assert "student_narrow_int8 is now checkpoints/compact_narrow" in message
    assert "peers.csv is now results/compact_results.csv" in message
    assert "fincompress run --run-dir" in message


def test_the_command_refuses_a_run_of_an_earlier_version(tmp_path):
    message = refused(former_run(tmp_path/"old"), "--only", "data")
    assert "earlier version" in message
    assert "compact_narrow" in message


def test_a_new_run_is_not_refused(run_dir):
    refuse_former_names(run_dir)


def test_a_model_of_an_earlier_version(tmp_path):
    "A checkpoint or an exported folder, whatever it is called now."
    old = former_run(tmp_path/"old")/"checkpoints/student_narrow_int8"
    folder = old.rename(tmp_path/"my-model")
    with pytest.raises(RunError, match="student_narrow_int8 is now compact_narrow") as caught:
        read_info(folder)
    assert "my-model" in str(caught.value)
    assert "fincompress run" in str(caught.value)
