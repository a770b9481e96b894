"""Scoring a corpus: formats, bad rows, interruptions, memory, a feed, and a Ray cluster."""
import gzip
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import hub_stand_in
import pandas as pd
import polars
import psutil
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as parquet
import pytest
from test_sweep import executed, planned, scored_project

import fincompress
from fincompress.app import cli
from fincompress.app.scale import cost
from fincompress.app.scale.feed import AT_MOST, feed, feed_row
from fincompress.app.scale.inputs import BLOCK_MIB, PROBLEM, SHARD_ROWS, file_source, files_of
from fincompress.app.scale.ray_engine import FileWriter, import_ray, jobs_on_ray, on_ray
from fincompress.app.scale.score import score_files
from fincompress.app.scale.shard import opened_scorer
from fincompress.app.scale.sweep import lost_point, run_sweep
from fincompress.lib.run.files import RunError

MAIN = "from fincompress.app.cli import main; main()"
ROWS = 6*SHARD_ROWS + 7
MEMORY = 600 # MB


def headlines(rows):
    verbs = ("rose", "fell", "stood")
    return [f"Sales {verbs[i % 3]} in region {i}" for i in range(rows)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    "Headlines in a CSV file."
    file = tmp_path_factory.mktemp("corpus")/"headlines.csv"
    pd.DataFrame(dict(id=range(ROWS), headline=headlines(ROWS))).to_csv(file, index=False)
    return file


@pytest.fixture(scope="session")
def answers(corpus, model, tmp_path_factory):
    "The result of a job without any trouble."
    out = tmp_path_factory.mktemp("answers")/"answers.parquet"
    score_files([corpus], out, model, workers=1)
    return out


def command(*words):
    return [sys.executable, "-c", MAIN, *map(str, words)]


# Formats


def write_formats(folder, table):
    "The same rows in every format."
    table.to_csv(folder/"a.csv", index=False)
    with gzip.open(folder/"b.csv.gz", "wt", encoding="utf-8") as file:
        table.to_csv(file, index=False)
    table.to_parquet(folder/"c.parquet", index=False)
    table.to_json(folder/"d.jsonl", orient="records", lines=True)
    (folder/"e.txt").write_text("\n".join(table.headline) + "\n", encoding="utf-8")
    return sorted(folder.iterdir())


READERS = {".parquet": pd.read_parquet, ".csv": pd.read_csv,
           ".jsonl": partial(pd.read_json, lines=True)}


def test_every_format_gives_the_same_answers(tmp_path, model):
    files = write_formats(tmp_path, pd.DataFrame(dict(id=range(50), headline=headlines(50))))
    labels = []
    for file in files:
        for ending, read in READERS.items():
            out = tmp_path/f"out-{file.name}{ending}"
            score_files([file], out, model)
            labels.append(read(out).label.tolist())
    assert len(labels) == 15 and all(each == labels[0] for each in labels)
    assert labels[0][:2] == ["positive", "negative"]


def test_folders_patterns_and_several_files_keep_their_order(tmp_path, model):
    (tmp_path/"news").mkdir()
    for name in ("b", "a"):
        (tmp_path/f"news/{name}.csv").write_text(f"id,text\n{name},Sales rose\n")
    (tmp_path/"z.csv").write_text("id,text\nz,Sales fell\n")
    ids = []
    for inputs in ([tmp_path/"z.csv", tmp_path/"news"], [tmp_path/"z.csv", tmp_path/"news/*.csv"]):
        out = tmp_path/f"out{len(ids)}.parquet"
        score_files(inputs, out, model)
        ids.append(pd.read_parquet(out).id.tolist())
    assert ids == [["z", "a", "b"]]*2


def test_a_typed_table_keeps_its_types(tmp_path, model):
    table = pa.table({
        "day": pa.array([1, 2], pa.date32()),
        "text": pa.array(["Sales rose", "Sales fell"]).dictionary_encode(),
        "tags": [["a"], []], "price": [1.5, None]})
    parquet.write_table(table, tmp_path/"typed.parquet")
    score_files([tmp_path/"typed.parquet"], tmp_path/"out.parquet", model, column="text")
    scored = parquet.read_table(tmp_path/"out.parquet")
    assert scored.select(table.schema.names).schema.equals(table.schema)
    assert scored["price"].to_pylist() == [1.5, None]
    with pytest.raises(RunError, match="CSV cannot hold the column tags"):
        score_files([tmp_path/"typed.parquet"], tmp_path/"out.csv", model, column="text")


def test_a_data_set_on_the_hub_is_streamed(tmp_path, model):
    words = command("score", "you/headlines", "--model", model, "--prefix", "model_",
                    "--out", tmp_path/"out.csv")
    with hub_stand_in.hub(hub_stand_in.everything()) as server:
        environment = os.environ | dict(HF_ENDPOINT=server.url, HF_HOME=str(tmp_path/"home"),
                                        HF_HUB_OFFLINE="0")
        done = subprocess.run(words, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    scored = pd.read_csv(tmp_path/"out.csv", keep_default_na=False)
    assert dict(zip(scored.text, scored.model_label))["Sales rose"] == "positive"


# Bad rows


def test_a_bad_row_is_kept_with_its_error(tmp_path, model):
    lines = ['{"text": "Sales rose"}', '{"text": null}', '{"text": 5}', '{"text": "  "}', '{"te',
             json.dumps(dict(text="x"*30_000)), '{"text": "Sales fell"}']
    (tmp_path/"bad.jsonl").write_text("\n".join(lines))
    counts = score_files([tmp_path/"bad.jsonl"], tmp_path/"out.parquet", model)
    scored = pd.read_parquet(tmp_path/"out.parquet")
    assert (counts["read"], counts["scored"], counts["failed"]) == (7, 2, 5)
    assert scored.label.dropna().tolist() == ["positive", "negative"]
    for text, error in zip(("no text", "not a text but int", "empty", "JSON", "characters"),
                           scored.error.dropna()):
        assert text in error
    assert scored[["negative", "neutral", "positive"]].isna().all(axis=1).sum() == 5


def test_strict_scoring_names_the_row_and_can_be_mended(tmp_path, model):
    file = tmp_path/"bad.csv"
    file.write_text("id,text\n1,Sales rose\n2,\n")
    with pytest.raises(RunError, match=r"row 2 cannot be scored \(the text is empty\)"):
        score_files([file], tmp_path/"out.csv", model, strict=True)
    assert not (tmp_path/"out.csv").exists()
    score_files([file], tmp_path/"out.csv", model)
    assert pd.read_csv(tmp_path/"out.csv").error.tolist()[1] == "the text is empty"


def test_odd_values_end_no_job(tmp_path, model):
    "Half an emoji, NaN, an object without fields: what no other program takes is mended."
    lines = ['{"text": "Sales fell \\ud83d", "meta": {}, "tags": [NaN, 1.5]}',
             '{"text": "Sales rose", "meta": {}, "tags": [Infinity]}']
    (tmp_path/"odd.jsonl").write_text("\n".join(lines))
    for ending in ("parquet", "jsonl"):
        counts = score_files([tmp_path/"odd.jsonl"], tmp_path/f"out.{ending}", model)
        assert (counts["scored"], counts["failed"]) == (2, 0)
    written = (tmp_path/"out.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in written]
    assert [row["text"] for row in rows] == ["Sales fell ?", "Sales rose"]
    assert [row["tags"] for row in rows] == [[None, 1.5], [None]]


@pytest.mark.parametrize("ending, line", [
    (".txt", "{}"), (".jsonl", '{{"text": "{}"}}'), (".csv", "{}")])
def test_an_odd_or_a_very_long_line_ends_no_job(tmp_path, model, ending, line):
    texts = ["Sales \x01rose", "x"*3_000_000, "Sales fell"]
    head = ["text"]*(ending == ".csv")
    (tmp_path/f"odd{ending}").write_text("\n".join([*head, *map(line.format, texts)]))
    counts = score_files([tmp_path/f"odd{ending}"], tmp_path/"out.parquet", model)
    scored = pd.read_parquet(tmp_path/"out.parquet")
    assert (counts["read"], counts["scored"]) == (3, 2)
    assert scored.label.tolist()[::2] == ["positive", "negative"]
    assert "characters" in scored.error[1]


@pytest.mark.parametrize("ending", [".txt", ".csv"])
def test_a_line_longer_than_a_block_is_named(tmp_path, model, ending):
    file = tmp_path/f"long{ending}"
    file.write_text("text\n" + "x"*(2*BLOCK_MIB + 1)*2**20 + "\nSales rose\n")
    with pytest.raises(RunError, match=f"{file.name} cannot be read.*over {BLOCK_MIB} MiB"):
        score_files([file], tmp_path/"out.csv", model)


def test_csv_that_cannot_hold_a_column_is_refused_at_once(tmp_path, model):
    table = pa.table(dict(text=["Sales rose"], raw=pa.array([b"\xff"], pa.binary())))
    parquet.write_table(table, tmp_path/"x.parquet")
    with pytest.raises(RunError, match="CSV cannot hold the column raw"):
        score_files([tmp_path/"x.parquet"], tmp_path/"out.csv", model)
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]


@pytest.mark.parametrize("content, words", [
    (b"", "x.csv is empty"),
    ("id,text\n1,Sales rose\n".encode("utf-16"), "cannot be read as csv"),
    (b"id,text\n", "the input has no rows"),
    (b"id,text\n1,a\n2,b,c\n", "Expected 2 columns, got 3"),
    (b"a,b\n1,2\n", "--column"),
    (b"text,label\na,b\n", "--prefix"),
    (b"id,text\n1,a\n", "no column 'headline'"),
])
def test_an_input_that_cannot_be_scored(tmp_path, model, content, words):
    (tmp_path/"x.csv").write_bytes(content)
    column = "headline" if "headline" in words else None
    with pytest.raises(RunError, match=words):
        score_files([tmp_path/"x.csv"], tmp_path/"out.csv", model, column=column)
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


def test_which_of_several_files_cannot_be_read(tmp_path, model):
    (tmp_path/"a.csv").write_text("id,text\n1,Sales rose\n")
    rows = "".join(f"{i},Sales rose and the dividend was raised\n" for i in range(50_000))
    (tmp_path/"b.csv").write_text(f"id,text\n{rows}1,2,3\n")
    with pytest.raises(RunError, match="b.csv cannot be read as csv"):
        score_files([tmp_path/"a.csv", tmp_path/"b.csv"], tmp_path/"out.csv", model)


def test_another_format_is_another_job(tmp_path):
    (tmp_path/"a.csv").write_text("text\nSales rose\n")
    jobs = [file_source([tmp_path/"a.csv"], format=name).identity for name in ("csv", "text")]
    assert jobs[0] != jobs[1]


def test_hidden_files_and_parts_of_a_folder_are_left_out(tmp_path):
    for name in ("a.csv", "._a.csv", ".ipynb_checkpoints/a-checkpoint.csv",
                 "out.csv.parts/part-00000000.parquet"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text("text\nSales rose\n")
    assert files_of(tmp_path) == [tmp_path/"a.csv"]


def test_the_command_without_the_extra(fincompress_without_pyarrow):
    done = fincompress_without_pyarrow
    assert done.returncode == 1
    assert 'pip install "fincompress[score]"' in done.stderr


@pytest.fixture
def fincompress_without_pyarrow(project):
    from conftest import without
    return project.command("score", "x.csv", "--out", "y.csv", before=without("pyarrow"))


# Interruptions


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_job_goes_on_and_ends_in_the_same_bytes(
        tmp_path, corpus, model, answers, sent):
    out = tmp_path/"answers.parquet"
    words = command("score", corpus, "--model", model, "--out", out, "--workers", 1)
    job = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first = job.stderr.readline()
    job.send_signal(sent)
    _, error = job.communicate(timeout=120)
    assert f"of {ROWS:,} rows" in first and "left" in first
    assert job.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert "the same command goes on" in error or sent == signal.SIGKILL
    kept = len([*Path(f"{out}.parts").glob("part-*.parquet")])
    assert 1 <= kept < 7 and not out.exists()
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == answers.read_bytes()
    assert f"read {ROWS:,}, scored {ROWS:,}, failed 0" in done.stdout


def test_parts_of_another_job_are_not_mixed_in(tmp_path, model):
    file = tmp_path/"x.csv"
    file.write_text("text\nSales rose\n\"\"\n")
    with pytest.raises(RunError):
        score_files([file], tmp_path/"out.csv", model, strict=True)
    file.write_text("text\nSales fell\n")
    with pytest.raises(RunError, match="another job"):
        score_files([file], tmp_path/"out.csv", model)


def test_a_second_job_at_the_same_place_is_refused(tmp_path, model):
    "Two of them would delete each other's parts."
    file = tmp_path/"x.csv"
    file.write_text("text\n" + "\n".join(headlines(2*SHARD_ROWS)))
    refused = []

    def again(counts, rows):
        with pytest.raises(RunError, match="another process is working in .*out.parquet"):
            score_files([file], tmp_path/"out.parquet", model)
        refused.append(counts)

    score_files([file], tmp_path/"out.parquet", model, workers=1, tell=again)
    assert len(refused) == 2 and len(parquet.read_table(tmp_path/"out.parquet")) == 2*SHARD_ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "x.csv"]


def test_parts_without_all_rows_make_no_result(tmp_path, model):
    "As on a shared disk that honours no lock."
    file = tmp_path/"x.csv"
    file.write_text("text\n" + "\n".join(headlines(2*SHARD_ROWS)))

    def delete(counts, rows):
        (tmp_path/"out.parquet.parts/part-00000000.parquet").unlink(missing_ok=True)

    with pytest.raises(RunError, match=f"of {2*SHARD_ROWS:,} rows, so another process"):
        score_files([file], tmp_path/"out.parquet", model, workers=1, tell=delete)
    assert not (tmp_path/"out.parquet").exists()


def test_a_job_that_goes_on_strictly_meets_the_bad_row_again(tmp_path, model):
    file = tmp_path/"x.csv"
    file.write_text("id,text\n1,Sales rose\n2,\n" + "".join(
        f"{i},{text}\n" for i, text in enumerate(headlines(SHARD_ROWS))))

    def stop(counts, rows):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        score_files([file], tmp_path/"out.csv", model, workers=1, tell=stop)
    assert (tmp_path/"out.csv.parts/part-00000000.parquet").exists()
    with pytest.raises(RunError, match="row 2 cannot be scored"):
        score_files([file], tmp_path/"out.csv", model, strict=True)
    told = []
    score_files([file], tmp_path/"out.csv", model, tell=lambda counts, rows: told.append(rows))
    assert len(pd.read_csv(tmp_path/"out.csv")) == SHARD_ROWS + 2
    assert told in ([2], []) # what is left to score


def test_what_a_killed_process_left_is_no_part_of_a_folder(tmp_path, model):
    "The temporary file has the number of a process that is no more."
    file = tmp_path/"x.csv"
    file.write_text("text\nSales rose\n")

    def leave(counts, rows):
        (tmp_path/"out/.part-00000007.parquet.1234.tmp").write_text("half")

    score_files([file], tmp_path/"out", model, tell=leave)
    assert [path.name for path in (tmp_path/"out").iterdir()] == ["part-00000000.parquet"]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_forecast_counts_the_shards_under_way(monkeypatch, capsys, workers):
    "Shards of 10 rows that take 8 seconds each, as many at a time as there are workers."
    seconds = iter([0, *(8*(1 + i//workers) for i in range(8))])
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(seconds))
    tell = cli.told_scoring(workers, every=0)
    for _ in range(8):
        tell(dict(read=10), 80)
    monkeypatch.undo()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8 and all(f" {10*workers/8:,.0f} a second" in line for line in lines)


def test_workers_change_no_byte(tmp_path, corpus, model, answers):
    score_files([corpus], tmp_path/"answers.parquet", model, workers=3)
    assert (tmp_path/"answers.parquet").read_bytes() == answers.read_bytes()


# Memory


def test_memory_does_not_grow_with_the_input(tmp_path, model):
    file = tmp_path/"long.csv"
    with open(file, "w") as out:
        out.write("id,text\n")
        for i in range(40*SHARD_ROWS):
            out.write(f"{i},Sales rose in region {i} {'and so on '*20}\n")
    words = command("score", file, "--model", model, "--out", tmp_path/"out.parquet")
    code = f"import resource, subprocess; subprocess.run({words!r}, check=True); " \
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    peak = int(done.stdout.split()[-1])*unit/1e6
    assert peak < MEMORY


READ = """
import sys, time
from fincompress.app.scale.inputs import file_source, shards
from fincompress.lib.run.machine import peak_memory
stream = shards(file_source(sys.argv[1:]).tables())
rows = len(next(stream))
time.sleep(2) # a slow model: time to read ahead
print(rows + sum(map(len, stream)), peak_memory())
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    "A table of some 400 MB of text as Parquet, whose rows are all in one group, and as CSV."
    folder = tmp_path_factory.mktemp("large")
    texts = pa.array([f"Sales rose in region {i} {'and so on '*20}" for i in range(10_000)])
    table = pa.table({"text": pa.chunked_array([texts]*200)})
    parquet.write_table(table, folder/"large.parquet", row_group_size=len(table))
    csv.write_csv(table, folder/"large.csv")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_little_is_read_ahead(large, ending):
    command = [sys.executable, "-c", READ, large/f"large.{ending}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows, peak = done.stdout.split()
    assert int(rows) == 2_000_000 and float(peak) < MEMORY/2


# A feed


def test_a_feed_is_answered_line_by_line(model):
    feed = subprocess.Popen(command("score", "-", "--model", model), stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, bufsize=1)
    labels = []
    for text in ("Sales rose", "Sales fell"):
        feed.stdin.write(text + "\n")
        feed.stdin.flush()
        labels.append(json.loads(feed.stdout.readline())["label"]) # before the next line is sent
    feed.stdin.close()
    assert feed.wait(timeout=60) == 0
    assert labels == ["positive", "negative"]


class Flushed(io.StringIO):
    "A stream that notes how many lines were written at each flush."
    def __init__(self):
        super().__init__()
        self.lines = []

    def flush(self):
        self.lines.append(self.getvalue().count("\n"))


def test_a_burst_is_answered_bit_by_bit(model):
    out = Flushed()
    feed(opened_scorer(model), io.BytesIO(b"Sales rose\n"*1000), out)
    written = [0, *out.lines]
    assert written[-1] == 1000 and AT_MOST <= 64
    assert max(later - earlier for earlier, later in zip(written, written[1:])) <= AT_MOST


@pytest.mark.parametrize("how", ["interrupted", "unread"])
def test_a_feed_ends_quietly(model, how):
    "On Ctrl-C, or when nobody reads its answers any more, though its input stays open."
    def heed(): # a background job ignores SIGINT
        signal.signal(signal.SIGINT, signal.default_int_handler)

    feed = subprocess.Popen(command("score", "-", "--model", model), stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
                            preexec_fn=heed)
    feed.stdin.write("Sales rose\n")
    feed.stdin.flush()
    assert json.loads(feed.stdout.readline())["label"] == "positive"
    if how == "interrupted":
        feed.send_signal(signal.SIGINT)
    else:
        feed.stdout.close()
        feed.stdin.write("Sales fell\n")
        feed.stdin.flush()
    assert feed.wait(timeout=60) == (130 if how == "interrupted" else 1)
    error = feed.stderr.read()
    assert "Fatal" not in error and "Traceback" not in error, error


def test_a_feed_keeps_the_fields_of_a_line(fincompress, model):
    given = '{"text": "Sales fell", "label": "mine"}\n'
    words = ("score", "-", "--format", "jsonl", "--model", model)
    refused = fincompress(*words, given=given)
    assert refused.code == 1 and "--prefix" in refused.err
    answered = fincompress(*words, "--prefix", "model_", given=given)
    row = json.loads(answered.out)
    assert (row["label"], row["model_label"]) == ("mine", "negative")


@pytest.mark.parametrize("option", [["--strict"], ["--workers", "2"], ["--engine", "ray"]])
def test_a_feed_refuses_what_is_for_jobs(fincompress, model, option):
    refused = fincompress("score", "-", "--model", model, *option, given="Sales rose\n")
    assert refused.code == 1 and "give an --out" in refused.err


def test_what_is_piped_in_can_be_a_job(tmp_path, model):
    words = command("score", "-", "--format", "jsonl", "--model", model, "--out", tmp_path/"o.csv")
    given = '{"id": 1, "text": "Sales rose"}\n{"id": 2, "text": "Sales fell"}\n'
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path/"o.csv").label.tolist() == ["positive", "negative"]


def test_a_mark_before_the_first_line_is_no_text():
    line = b'\xef\xbb\xbf{"text": "Sales rose"}\r\n'
    assert feed_row(line, "jsonl", "text") == ({"text": "Sales rose"}, "Sales rose", None)
    assert feed_row(b"\xef\xbb\xbfSales rose\n", "text", "text")[1:] == ("Sales rose", None)


# From Python


@pytest.mark.parametrize("kind", [
    "object", "string", "string[pyarrow]", "category", pd.ArrowDtype(pa.large_string())])
def test_every_kind_of_nothing_in_a_pandas_frame(kind, model):
    texts = pd.Series(["Sales rose", None, "Sales fell"], dtype=kind)
    scored = fincompress.score(pd.DataFrame(dict(headline=texts)), model=model)
    assert scored.label[[0, 2]].tolist() == ["positive", "negative"]
    assert scored.error[1] == "there is no text"


@pytest.mark.parametrize("kind", [polars.String, polars.Categorical])
def test_a_polars_frame_comes_back_as_one(model, kind):
    texts = polars.Series(["Sales rose", None], dtype=kind)
    frame = polars.DataFrame(dict(day=[1, 2], headline=texts))
    scored = fincompress.score(frame, model=model)
    assert isinstance(scored, polars.DataFrame)
    assert scored["label"].to_list() == ["positive", None]
    assert scored["error"].to_list() == [None, "there is no text"]


def test_a_table_in_memory_gets_the_answers_of_its_file(corpus, model, answers):
    scored = fincompress.score(pd.read_csv(corpus), model=model)
    expected = pd.read_parquet(answers)
    for name in ("label", "negative", "neutral", "positive"):
        assert (scored[name].to_numpy() == expected[name].to_numpy()).all()


# A cluster


@pytest.fixture(scope="module")
def cluster():
    "Two nodes on loopback, and the address."
    pytest.importorskip("ray")
    ray = import_ray()
    from ray.cluster_utils import Cluster
    small = dict(num_cpus=1, object_store_memory=80*1024**2)
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(**small)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_cluster_runs_the_points_of_a_sweep(tmp_path, cluster):
    sweep = planned(scored_project(tmp_path/"project"), "width=1,2,3", "seed=42,43")
    waves = []

    def engine(function, jobs):
        waves.append(len(jobs))
        return jobs_on_ray(function, jobs, lost_point, cluster.address)

    outcomes = run_sweep(sweep, engine)
    counts = executed(outcomes)
    assert counts["00_data"] == 1 and counts["01_teacher"] == 2
    assert max(waves) > 1 and sum(waves) == len(sweep.points)
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.stage for outcome in failed] == ["08_benchmark"]*2
    assert (sweep.folder/"sweep.csv").exists()


def test_a_job_that_fails_on_a_cluster_leaves_the_others(cluster):
    def lost(job, error):
        return job, str(error)

    found = jobs_on_ray(math.sqrt, [4, -1, 9], lost, cluster.address)
    assert found[0] == 2 and found[2] == 3
    assert found[1][0] == -1 and "math domain error" in found[1][1]


def test_the_command_scores_on_a_cluster(tmp_path, corpus, model, answers, cluster, fincompress):
    out = tmp_path/"answers.parquet"
    done = fincompress("score", corpus, "--out", out, "--model", model, "--engine", "ray",
                       "--address", cluster.address)
    assert done.code == 0 and out.read_bytes() == answers.read_bytes(), done.err


def test_the_rates_of_a_cluster(model, cluster):
    rows = cost.cluster_rows(model, headlines(5*SHARD_ROWS), cluster.address)
    measured = pd.DataFrame(rows).set_index(["what", "cores"])
    assert [*measured.index] == [(cost.CLUSTER, 1), (cost.CLUSTER, 2), (cost.DRIVER, 1)]
    assert measured.sentences.tolist() == [4*SHARD_ROWS, 3*SHARD_ROWS, 5*SHARD_ROWS]
    assert (measured.rate > 0).all()


def scoring_actors() -> list:
    "Processes in which Ray keeps a model."
    processes = psutil.process_iter(["name"])
    return [each for each in processes if "ray::MapWorker" in (each.info["name"] or "")]


def test_a_cluster_gives_the_same_bytes_though_an_actor_is_killed(
        tmp_path, corpus, model, answers, cluster):
    killed = []

    def kill(counts, rows):
        if not killed:
            killed.append(scoring_actors()[0])
            killed[0].kill()

    out = tmp_path/"answers.parquet"
    counts = score_files([corpus], out, model, tell=kill, workers=2,
                         engine=partial(on_ray, address=cluster.address))
    assert killed and not killed[0].is_running()
    assert counts["read"] == counts["scored"] == ROWS
    assert out.read_bytes() == answers.read_bytes()


def test_a_cluster_gives_the_same_bytes_though_a_node_is_killed(
        tmp_path, corpus, model, answers, cluster):
    def kill(counts, rows):
        if len(cluster.list_all_nodes()) == 2:
            cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)

    out = tmp_path/"answers.parquet"
    counts = score_files([corpus], out, model, tell=kill, workers=2,
                         engine=partial(on_ray, address=cluster.address))
    assert len(cluster.list_all_nodes()) == 1
    assert counts["read"] == counts["scored"] == ROWS
    assert out.read_bytes() == answers.read_bytes()
    assert not Path(f"{out}.parts").exists()


def test_a_cluster_that_is_not_there(tmp_path, model, monkeypatch):
    (tmp_path/"a.csv").write_text("text\nSales rose\n")

    def refuse(*_, **__):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(import_ray(), "init", refuse)
    with pytest.raises(RunError, match="no Ray cluster at nowhere"):
        score_files([tmp_path/"a.csv"], tmp_path/"out.csv", model,
                    engine=partial(on_ray, address="nowhere"))
    assert not [*tmp_path.rglob("*.arrow")]


def test_a_worker_that_cannot_open_the_model_is_no_traceback(tmp_path, model, cluster):
    (tmp_path/"shards").mkdir()
    writer = dict(folder=tmp_path/"shards", column="text", model=tmp_path/"no model")
    shard = pa.table({"text": ["Sales rose"], PROBLEM: pa.nulls(1, pa.string())})
    with pytest.raises(RunError, match="the same command goes on"):
        [*on_ray(writer, [(0, shard)], workers=1, address=cluster.address)]
    assert not [*tmp_path.rglob("*.arrow")]


def test_a_worker_takes_one_core_and_says_which_folder_it_does_not_see(
        tmp_path, model, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    write = FileWriter(tmp_path/"here", "text", model)
    unseen = write(dict(number=0, file=str(tmp_path/"there/shard-00000000.arrow")))
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert f"{tmp_path/'here'} is not seen by a worker: choose an --out" in unseen["error"]


def test_a_worker_names_the_row_that_strict_scoring_refuses(tmp_path, model, cluster):
    (tmp_path/"bad.csv").write_text("id,text\n1,Sales rose\n2,\n")
    with pytest.raises(RunError, match="row 2 cannot be scored"):
        score_files([tmp_path/"bad.csv"], tmp_path/"out.csv", model, strict=True, workers=1,
                    engine=partial(on_ray, address=cluster.address))
