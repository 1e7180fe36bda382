"""Training from the command line: a model file comes out, a second call takes up the run, mistakes are one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from commands import train
from training import modelfile

ROOT = Path(train.__file__).parents[1]
SMALL = ["--epochs", "2", "--repeats", "1", "--crop", "16", "--batch", "4", "--widths", "4", "8", "--lr", "0.02"]


@pytest.fixture
def folder(tmp_path):
    """Ten images of a bright square, with their labels."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / "squares" / kind).mkdir(parents=True)
    for number in range(10):
        label = np.zeros((24, 24), np.uint8)
        y, x = rng.integers(2, 12, 2)
        label[y : y + 9, x : x + 9] = 1
        image = (60 * rng.random((24, 24)) + 150 * label).astype(np.uint8)
        PIL.Image.fromarray(image).save(tmp_path / "squares" / "images" / f"{number}.png")
        PIL.Image.fromarray(label).save(tmp_path / "squares" / "labels" / f"{number}.png")
    return tmp_path / "squares"


def test_a_folder_becomes_a_model_file(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main([str(folder), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "test mean_iou 0." in printed and "model.pt2" in printed
    model = modelfile.load("runs/squares/model.pt2")
    assert model(torch.zeros(1, 1, 20, 30)).shape == (1, 2, 20, 30)
    assert train.main([str(folder), *SMALL]) == 0
    assert "trained before" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="PyTorch for Windows lacks what torchrun meets at")
def test_two_processes_train_and_end_a_mistake_together(folder, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(*arguments):
        command = [*launch, str(ROOT / "run.py"), "train", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)

    done = start(folder, *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("test mean_iou") == 1 and (tmp_path / "runs/squares/model.pt2").exists()
    wrong = start("nowhere")
    assert wrong.returncode != 0 and "neither a folder" in wrong.stderr
