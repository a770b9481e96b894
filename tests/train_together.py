"A training that one process or several can do; started as a program it does three of them."
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from fincompress.lib.run import files
from fincompress.lib.train import training
from fincompress.lib.train.batches import Sentences
from fincompress.lib.train.processes import processes
from fincompress.lib.train.training import FitSettings, fit
from fincompress.student import EncoderConfig, SentimentEncoder

SETTINGS = FitSettings(epochs=4, learning_rate=3e-3, batch_size=32, seed=0,
                       mixed_precision=False)


class Interrupted(Exception):
    pass


class LossWithWeights(torch.nn.Module):
    "Cross-entropy through a layer of its own; fails at one call, if told so."

    def __init__(self, fails_at=None):
        super().__init__()
        torch.manual_seed(1)
        self.last = torch.nn.Linear(3, 3)
        self.calls = 0
        self.fails_at = fails_at

    def forward(self, model, batch):
        self.calls += 1
        if self.calls == self.fails_at:
            raise Interrupted
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        return training.F.cross_entropy(logits + self.last(logits), batch["labels"]), {}


def sentences(count, seed):
    "Sentences whose class is that of their most frequent pieces."
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw).tolist()
    lengths = torch.randint(4, 15, (count,), generator=draw).tolist()
    rows = []
    for label, length in zip(labels, lengths):
        kinds = torch.randint(6, (length,), generator=draw).clamp(max=3)
        pieces = torch.randint(1, 10, (length,), generator=draw)
        rows.append([(label if k == 3 else k)*10 + p for k, p in
                     zip(kinds.tolist(), pieces.tolist())])
    return Sentences(rows, labels)


def train(folder, dropout=0., loss=None, **settings):
    "One row an epoch, and the trained model."
    torch.manual_seed(0)
    config = EncoderConfig.even(50, layers=2, hidden_size=16, heads=2, intermediate_size=32,
                                dropout=dropout)
    model = SentimentEncoder(config)
    settings = training.replace(SETTINGS, **settings)
    history = fit(model, loss or LossWithWeights(), sentences(301, 0), sentences(80, 1), settings,
                  log=folder/"log.csv", state=folder/"state.safetensors", key="test")
    return history.drop(columns="seconds"), model


def note_writes(folder):
    "Let every atomic write say which process it comes from."
    plain = files.atomic_path

    def noted(path, *args, **options):
        place = folder/f"writes.{processes().process_index}"
        with open(place, "a", encoding="utf-8") as file:
            file.write(f"{Path(path).name}\n")
        return plain(path, *args, **options)

    files.atomic_path = training.atomic_path = noted


def interrupted(folder):
    "The training with dropout, broken off in its third epoch and begun again."
    try:
        train(folder, dropout=0.1, loss=LossWithWeights(fails_at=25), ema_decay=0.9)
    except Interrupted:
        pass
    return train(folder, dropout=0.1, ema_decay=0.9)


def main(out):
    "Train as told in the tests, and leave the curves and the weights of every process."
    number = processes().process_index
    note_writes(out)
    found = {
        "plain": train(out/"plain"),
        "dropout": train(out/"dropout", dropout=0.1, ema_decay=0.9),
        "resumed": interrupted(out/"resumed")}
    for name, (history, model) in found.items():
        history.to_json(out/f"{name}.{number}.json", orient="records", double_precision=15)
        save_file(model.state_dict(), out/f"{name}.{number}.safetensors")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
