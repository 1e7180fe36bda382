"""Checkpoints: nothing that can happen while saving costs the checkpoint that was there."""

import contextlib
import os
import pickle

import pytest
import torch

import checkpoint


def test_what_is_saved_comes_back(tmp_path):
    state = {"model": {"w": torch.arange(3.0)}, "epoch": 2, "history": [{"loss": 0.5}], "scaler": None}
    checkpoint.save(tmp_path, state)
    found, trouble = checkpoint.load(tmp_path)
    assert torch.equal(found["model"]["w"], torch.arange(3.0)) and found["history"] == [{"loss": 0.5}] and trouble == ""


def test_an_empty_folder_holds_no_state(tmp_path):
    assert checkpoint.load(tmp_path / "nothing") == (None, "")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("k", [1, 2])
def test_fault_65_a_failure_at_any_call_leaves_a_whole_checkpoint(tmp_path, monkeypatch, call, k):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, {"epoch": epoch})
    real, calls = getattr(os, call), []

    def fail_at_k(*args):
        calls.append(args)
        if len(calls) == k:
            raise OSError("No space left on device")
        return real(*args)

    monkeypatch.setattr(os, call, fail_at_k)
    with contextlib.suppress(OSError):
        checkpoint.save(tmp_path, {"epoch": 3})
    monkeypatch.undo()
    assert checkpoint.load(tmp_path)[0]["epoch"] in (2, 3)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_fault_66_a_damaged_file_falls_back_and_is_kept(tmp_path, damage):
    checkpoint.save(tmp_path, {"epoch": 1})
    latest = checkpoint.save(tmp_path, {"epoch": 2})
    content = bytearray(latest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    latest.write_bytes({"cut": content[:-10], "flip": content, "empty": b""}[damage])
    found, trouble = checkpoint.load(tmp_path)
    assert found["epoch"] == 1 and "damaged" in trouble
    assert (tmp_path / "latest.corrupt").exists()


def test_fault_74_a_pickle_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/evil",)

    checkpoint.save(tmp_path, {"epoch": Evil()})
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(tmp_path)
