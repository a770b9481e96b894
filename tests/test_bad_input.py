"""What a person can give wrongly: one clear message, a failing exit code, and earlier results left as they were."""
import os, shutil, subprocess, sys
from pathlib import Path

import pytest

from fincompress.lib.run.files import file_digest, files_below

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT/"outputs"/"smoke"
GOOD = "Sales rose,positive\nProfit fell,negative\nIt makes pumps,neutral\n"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    "A finished run, copied from the smoke study."
    assert (SMOKE/"stages/08_benchmark.json").exists(), "the smoke study is missing: run `make smoke` first"
    folder = tmp_path_factory.mktemp("run")/"run"
    shutil.copytree(SMOKE, folder, ignore=shutil.ignore_patterns("unfinished", ".lock"))
    return folder


def state(folder): return {p.relative_to(folder).as_posix(): file_digest(p) for p in files_below(folder) if "unfinished" not in p.parts and p.name not in (".lock", "run.json")}


def run(run_dir, *words, **environment):
    "`fincompress run` of the smoke profile on a run directory."
    command = [Path(sys.executable).with_name("fincompress"), "run", "--profile", "smoke", "--run-dir", run_dir, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env={**os.environ, **environment})


def refused(run_dir, *words, **environment) -> str:
    "The message of a run that must fail and leave the earlier results as they were."
    before = state(run_dir)
    result = run(run_dir, *words, **environment)
    assert result.returncode not in (0, None), result.stdout
    assert result.stderr.count("error:") == 1 and "Traceback" not in result.stderr, result.stderr
    assert state(run_dir) == before
    return result.stderr


CSV = {
    "empty file": (b"", ["is empty"]),
    "unknown label": (f"text,label\n{GOOD}Shares flat,bullish\n".encode(), ["row 5", "'bullish' is unknown", "negative, neutral, positive"]),
    "missing column": (b"sentence,label\nSales rose,positive\n", ["no column text", "name the columns"]),
    "another encoding": (f"text,label\n{GOOD}".encode("utf-16"), ["zero bytes", "save it as UTF-8"]),
    "missing text": (f"text,label\n{GOOD},positive\n".encode(), ["row 5", "the text is missing"]),
    "empty string": (f'text,label\n{GOOD}"  ",positive\n'.encode(), ["row 5", "the text is missing"]),
    "missing label": (f"text,label\n{GOOD}Shares flat,\n".encode(), ["row 5", "label '' is unknown"]),
    "NaN label": (f"text,label\n{GOOD}Shares flat,nan\n".encode(), ["row 5", "label 'nan' is unknown"]),
    "50,000 words": (f"text,label\n{GOOD}{'profit ' * 50_000},positive\n".encode(), ["row 5", "characters, more than max_characters"]),
    "too small to split": (f"text,label\n{GOOD}".encode(), ["too few sentences to split by class", "1 negative"]),
}


@pytest.mark.parametrize("case", CSV)
def test_a_bad_table(case, run_dir, tmp_path):
    content, expected = CSV[case]
    path = tmp_path/"own.csv"
    path.write_bytes(content)
    message = refused(run_dir, "--only", "data", "-p", f"source={path}")
    assert all(words in message for words in expected), message
    assert "00_data" in message and (case == "too small to split" or "own.csv" in message)


def test_a_missing_source(run_dir, tmp_path):
    assert "neither a folder nor a file" in refused(run_dir, "--only", "data", "-p", f"source={tmp_path/'nothing.csv'}")


def test_a_folder_without_data(run_dir, tmp_path):
    assert "has no labelled data" in refused(run_dir, "--only", "data", "-p", f"source={tmp_path}")


def test_a_parquet_file_that_is_none(run_dir, tmp_path):
    (tmp_path/"own.parquet").write_bytes(b"not a parquet file")
    assert "cannot be read as a table" in refused(run_dir, "--only", "data", "-p", f"source={tmp_path/'own.parquet'}")


def test_an_unreachable_hub(run_dir):
    message = refused(run_dir, "--only", "data", "-p", "source=hub", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert "cannot be reached" in message and "run offline" in message


def test_an_unreachable_backbone(run_dir):
    message = refused(run_dir, "--only", "teacher", "-p", "backbone=ProsusAI/finbert", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert "01_teacher" in message and "cannot be reached" in message


def test_a_backbone_that_is_no_bert(run_dir, tmp_path):
    (tmp_path/"config.json").write_text('{"model_type": "roberta"}')
    assert "choose a backbone of model_type 'bert'" in refused(run_dir, "--only", "teacher", "-p", f"backbone={tmp_path}")


def test_a_damaged_checkpoint_is_made_again(run_dir, tmp_path):
    "A file that was changed after its stage wrote it: later stages refuse it, and a plain run repairs it."
    broken = tmp_path/"run"
    shutil.copytree(run_dir, broken)
    weights = broken/"checkpoints/student_vanilla_kd/model.safetensors"
    data = bytearray(weights.read_bytes()); data[-1] ^= 1
    weights.write_bytes(data)
    message = refused(broken, "--only", "ptq", "--force")
    assert "was changed after 03_vanilla_kd wrote it" in message and "run 03_vanilla_kd again" in message


def test_a_stage_without_its_inputs(tmp_path):
    result = run(tmp_path/"fresh", "--only", "vanilla_kd")
    assert result.returncode == 1 and "run 00_data first" in result.stderr


@pytest.mark.parametrize("words, expected", [(["--profile", "colab"], "profile"), (["-p", "epoch=3"], "epochs"), (["-p", "teacher.epochs=many"], "whole number")])
def test_a_wrong_word_stops_before_anything_runs(words, expected, run_dir):
    assert expected in refused(run_dir, *words)


def test_a_run_directory_that_cannot_be_written(tmp_path):
    (tmp_path/"file").write_text("")
    result = run(tmp_path/"file"/"run", "--only", "data")
    assert result.returncode == 1 and "cannot work in" in result.stderr and "--run-dir" in result.stderr
