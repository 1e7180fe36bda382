"""Training from the command line: a model file comes out, a second call takes up the run, mistakes are one sentence."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from commands import check, train
from imagesets.files import read_image
from tests.data_helpers import blobs, refused, save
from training import modelfile

ROOT = Path(train.__file__).parents[1]
SMALL = ["--epochs", "2", "--repeats", "1", "--crop", "16", "--batch", "4", "--widths", "4", "8", "--lr", "0.02"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten images with their labels, in the folder where the commands are given."""
    monkeypatch.chdir(tmp_path)
    for sample in blobs(10, 24):
        save(tmp_path / "squares" / "images" / f"{sample.name}.png", sample.image)
        save(tmp_path / "squares" / "labels" / f"{sample.name}.png", sample.label)
    return tmp_path / "squares"


def test_a_folder_becomes_a_model_file(folder, capsys):
    assert train.main([str(folder), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"epoch 1/2 · .* · about 0\.\d minutes left", printed)) == printed.count("minutes left") == 1
    assert "test mean_iou 0." in printed and "test mean_iou with four reflections 0." in printed
    assert "test IoU of class 1 0." in printed and "model.pt2" in printed
    assert [row.split(",")[0] for row in Path("runs/squares/history.csv").read_text().split()] == ["epoch", "1", "2"]
    assert read_image(Path("runs/squares/curves.png")).shape[1] > 300
    model = modelfile.load("runs/squares/model.pt2")
    assert np.isnan(model.card.mean).all()  # each image is normalised by its own numbers, also in `predict`
    assert model(torch.zeros(1, 1, 20, 30)).shape == (1, 2, 20, 30)
    assert train.main([str(folder), *SMALL]) == 0
    assert "found in its folder" in capsys.readouterr().out


def test_the_numbers_of_an_epoch_go_to_tensorboard_where_it_is(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install tensorboard" in refused(train.main, [str(folder), *SMALL, "--log", "tensorboard"])
    written = []
    stub = ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = lambda place: SimpleNamespace(add_scalar=lambda *row: written.append((place, *row)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: stub)
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    train.log_to(folder)({"epoch": 2.0, "val_mean_iou": 0.5})
    assert written == [(folder, "epoch", 2.0, 2), (folder, "val_mean_iou", 0.5, 2)]


def test_masks_of_0_and_255_train_as_check_and_train_advise_and_classes_keep_their_names(folder):
    for path in (folder / "labels").iterdir():
        PIL.Image.fromarray(np.array(PIL.Image.open(path)) * 255).save(path)
    options = re.search(r"--map \S+", refused(train.main, [str(folder), *SMALL]))[0].split()
    assert options == re.search(r"--map \S+", "".join(check.describe(check.examine(folder))))[0].split()
    assert train.main([str(folder), *SMALL, *options, "--normalise", "training", "--stem", "1"]) == 0
    assert modelfile.load("runs/squares/model.pt2").card.light != (0, 0, 1, 1)  # that of its training images
    (folder / "classes.csv").write_text("name,value\nground,0\nsquare,255\n")
    assert train.main([str(folder), *SMALL, "--output", "named"]) == 0
    assert modelfile.load("named/model.pt2").card.class_names == ("ground", "square")


def test_another_run_in_the_folder_is_not_replaced_without_being_told(folder, tmp_path):
    train.main([str(folder), *SMALL])
    before = Path("runs/squares/model.pt2").read_bytes()
    message = refused(train.main, changed := [str(folder), *SMALL, "--lr", "0.03"])
    assert "runs/squares holds another run, which differs in lr: add --output or --overwrite" in message
    moved = folder.rename(tmp_path / "old")
    shutil.copytree(moved, folder)
    (folder / "images" / "s9.png").unlink()
    (folder / "labels" / "s9.png").unlink()
    assert "another run" in refused(train.main, [str(folder), *SMALL])  # other images under the same name
    assert Path("runs/squares/model.pt2").read_bytes() == before
    assert train.main([*changed, *re.search(r"--output \S+", message)[0].split()]) == 0
    assert Path("runs/squares/model.pt2").read_bytes() == before
    assert train.main([*changed, "--overwrite"]) == 0 and Path("runs/squares/model.pt2").read_bytes() != before


@pytest.mark.parametrize("value", ["lr -1", "lr nan", "epochs 0", "seed -1", "crop 0", "batch 0", "map 0", "map 0=256"])
def test_values_are_looked_at_before_the_work(folder, capsys, value):
    with pytest.raises(SystemExit) as caught:
        train.main([str(folder), *SMALL, *f"--{value}".split()])
    assert caught.value.code == 2 and f"--{value.split()[0]}" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("runs").exists() and not Path("data").exists()


def test_a_folder_that_cannot_be_written_is_named_before_the_work(folder):
    Path("file").touch()
    assert "in-use.lock cannot be written" in refused(train.main, [str(folder), *SMALL, "--output", "file/run"])
    assert not Path("data").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="PyTorch for Windows lacks what torchrun meets at")
def test_two_processes_train_and_end_a_mistake_together(folder, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(*arguments):
        command = [*launch, str(ROOT / "run.py"), "train", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)

    done = start(folder, *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("test mean_iou 0") == 1 and (tmp_path / "runs/squares/model.pt2").exists()
    wrong = start("nowhere")
    assert wrong.returncode != 0 and "neither a folder" in wrong.stderr
