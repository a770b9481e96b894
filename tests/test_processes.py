"Two processes train as one does: the same curve, each file written once, an exact resume."
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from train_together import SETTINGS, train

PROGRAM = Path(__file__).with_name("train_together.py")
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    "What two processes leave."
    out = tmp_path_factory.mktemp("together")
    for name in ("plain", "dropout", "resumed"):
        (out/name).mkdir()
    done = subprocess.run([*LAUNCHER, PROGRAM, out], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return out


def curve(together, name, number=0):
    return pd.read_json(together/f"{name}.{number}.json", orient="records", precise_float=True)


def weights(together, name, number=0):
    return load_file(together/f"{name}.{number}.safetensors")


def test_two_processes_have_the_curve_of_one(together, tmp_path):
    alone, _ = train(tmp_path)
    both = curve(together, "plain")
    assert list(both.columns) == list(alone.columns) and len(both) == SETTINGS.epochs
    assert (both - alone).abs().max().max() < 1e-3
    assert both.val_macro_f1.max() > 0.5 and both.train_loss.diff().max() < 0


@pytest.mark.parametrize("name", ["plain", "dropout", "resumed"])
def test_all_processes_end_with_the_same_weights(together, name):
    first, second = weights(together, name, 0), weights(together, name, 1)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert curve(together, name, 0).equals(curve(together, name, 1))


def test_each_file_is_written_once(together):
    written = (together/"writes.0").read_text(encoding="utf-8").split()
    assert set(written) == {"state.safetensors", "log.csv"}
    assert written.count("log.csv") == 3
    assert written.count("state.safetensors") == 3*SETTINGS.epochs
    assert not (together/"writes.1").exists()


def test_an_interrupted_training_ends_as_an_uninterrupted_one(together):
    assert curve(together, "resumed").equals(curve(together, "dropout"))
    ended, resumed = weights(together, "dropout"), weights(together, "resumed")
    assert all(torch.equal(value, resumed[key]) for key, value in ended.items())
    assert not curve(together, "dropout").equals(curve(together, "plain"))
