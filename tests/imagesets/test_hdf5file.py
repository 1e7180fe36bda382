"""Tests of hdf5file.py: no link is followed, nothing absurd is allocated, and drives without locks work."""

from __future__ import annotations

import errno
from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.data_helpers import build, build_normalised, edited, refused

from imagesets import hdf5file
from imagesets import hdf5probe
from data import SegmentationDataset
from imagesets.hdf5 import open_hdf5


def opened(path: Path) -> None:
    with open_hdf5(path):
        pass


def other_file(folder: Path) -> Path:
    """A file that is sound, and not ours to be read."""
    with h5py.File(folder / "other.hdf5", "w") as file:
        file["secret"] = np.zeros((6, 8), np.uint8)
    (folder / "raw.bin").write_bytes(bytes(48))
    return folder / "other.hdf5"


# --- links ---


@pytest.mark.parametrize("level", ["", "image", "label"])
@pytest.mark.parametrize("link", [h5py.ExternalLink("other.hdf5", "/secret"), h5py.SoftLink("/label/00000")])
def test_fault_34_a_link_is_refused_and_not_followed(tmp_path, level, link, monkeypatch):
    other, path = other_file(tmp_path), build(tmp_path)
    with edited(path) as file:
        group = file[level] if level else file
        group["00008"] = link
    read = []
    inner = h5py.Group.__getitem__
    monkeypatch.setattr(h5py.Group, "__getitem__", lambda group, name: (read.append(name), inner(group, name))[1])
    message = refused(opened, path)
    assert "00008 is a link to" in message and "not followed" in message
    assert ("in other.hdf5" in message) == isinstance(link, h5py.ExternalLink)
    assert "00008" not in read
    assert other.exists()


@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_fault_34_an_array_with_its_bytes_in_another_file_is_refused(tmp_path, kind):
    other, path = other_file(tmp_path), build(tmp_path)
    with edited(path) as file:
        kept = dict(file["label/00003"].attrs)
        del file["label/00003"]
        if kind == "external":
            file.create_dataset("label/00003", (6, 8), "u1", external=[(str(tmp_path / "raw.bin"), 0, 48)])
        else:
            layout = h5py.VirtualLayout((6, 8), "u1")
            layout[:] = h5py.VirtualSource(str(other), "secret", (6, 8))
            file["label"].create_virtual_dataset("00003", layout)
        file["label/00003"].attrs.update(kept)
    assert "/label/00003 takes its values from another file" in refused(opened, path)


# --- sizes ---


@pytest.mark.parametrize("chunks", [(64, 64), None])
def test_fault_35_an_absurd_shape_is_refused_before_anything_is_allocated(tmp_path, chunks):
    path = build(tmp_path)
    with edited(path) as file:
        file.create_dataset("extra/00000", (2**20, 2**20), "u1", chunks=chunks)
    resource = pytest.importorskip("resource")  # Windows has none
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refused(opened, path)
    assert "/extra/00000 declares the shape (1048576, 1048576), 1.1e+12 values; at most 268435456" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 50_000  # kilobytes


def test_fault_35_an_absurd_chunk_is_refused(tmp_path):
    path = build(tmp_path)
    with edited(path) as file:
        file.create_dataset("extra/00000", (1, 1), "u1", chunks=(2**15, 2**15), maxshape=(None, None))
    assert "/extra/00000 declares the shape (1, 1), 1.1e+09 values" in refused(opened, path)


def test_fault_35_many_names_of_one_array_cannot_hide_what_they_become(tmp_path):
    path = tmp_path / "bomb.hdf5"
    with hdf5file.create_file(path) as file:
        array = file.create_dataset("image/a", (1000, 1000), "u1", fillvalue=0, chunks=(1000, 1000))
        for name in range(300):
            file[f"image/{name}"] = array  # three hundred names, one array, nowhere stored
    hdf5file.stamp(path)
    assert "its arrays declare 301000000 bytes, but the file has only" in refused(opened, path)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    path = build(tmp_path)
    with edited(path) as file:
        file["extra/00000"] = ["text"]
    assert "/extra/00000 has dtype object; expected integers or floats" in refused(opened, path)


def test_fault_18_a_file_that_cannot_be_read_is_one_error_of_ours(tmp_path, monkeypatch):
    def fails(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = build(tmp_path)
    monkeypatch.setattr(hdf5file, "_sha256_of_rest", fails)
    assert "set.hdf5 cannot be read: Permission denied." in refused(opened, path)


def test_damage_that_shows_in_the_lists_of_names_is_one_error_of_ours(tmp_path, monkeypatch):
    def fails(file, path):
        raise RuntimeError("unable to decode")

    monkeypatch.setattr(hdf5file, "check_links", fails)
    message = refused(opened, build(tmp_path))
    assert "is damaged" in message and "unable to decode" in message


# --- files from elsewhere ---


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A sound file that this process has not written; the limit of time is short."""
    path = build(tmp_path)
    monkeypatch.setattr(hdf5file, "_KNOWN", set())
    monkeypatch.setattr(hdf5file, "SECONDS", 1)
    return path


@pytest.mark.parametrize("action", ["os.abort()", "time.sleep(60)"], ids=["crash", "hang"])
def test_fault_22_a_file_on_which_hdf5_crashes_or_hangs_does_so_in_another_process(
    foreign, action, tmp_path, monkeypatch
):
    (tmp_path / "probe.py").write_text(f"import os, time\n{action}")
    monkeypatch.setattr(hdf5file, "PROBE", tmp_path / "probe.py")
    monkeypatch.setattr(h5py, "File", lambda *_, **__: pytest.fail("it was opened here"))
    message = refused(opened, foreign)
    assert "set.hdf5 is damaged: HDF5 crashes on it, or does not come to an end" in message


def test_a_sound_file_from_elsewhere_is_read_in_a_child_once_and_an_own_one_never(foreign, tmp_path, monkeypatch):
    calls, inner = [], hdf5file.subprocess.run
    monkeypatch.setattr(hdf5file, "SECONDS", 60)
    monkeypatch.setattr(
        hdf5file.subprocess, "run", lambda command, **named: (calls.append(command), inner(command, **named))[1]
    )
    opened(foreign)
    opened(foreign)
    opened(build(tmp_path, name="own", num_classes=3))
    assert [command[1:] for command in calls] == [[str(hdf5file.PROBE), str(foreign)]]


def test_the_child_reads_all_values_and_follows_no_link(tmp_path, monkeypatch):
    other, path = other_file(tmp_path), build(tmp_path)
    with edited(path) as file:
        file["label/00008"] = h5py.ExternalLink("other.hdf5", "/secret")
    read, inner = [], h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda array, key: (read.append(array.name), inner(array, key))[1])
    with h5py.File(path) as file:
        hdf5probe.read_all(file)
    assert set(read) == {f"/{group}/{i:05d}" for group in ("image", "label") for i in range(8)}
    assert other.exists()


# --- drives without locks ---


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A folder on a drive that has no locks: HDF5 refuses as it does where `flock` is not supported."""
    folder, inner = tmp_path / "drive", h5py.File
    folder.mkdir()
    calls = []

    def open_or_refuse(path, mode, locking=None, **options):
        calls.append((Path(path), mode))
        if Path(path).parent == folder and locking is not False:
            text = "Unable to synchronously open file (unable to lock file, errno = 95, error message = 'x')"
            raise OSError(errno.EOPNOTSUPP, text)
        return inner(path, mode, locking=locking, **options)

    monkeypatch.setattr(h5py, "File", open_or_refuse)
    return folder, calls


def test_fault_31_a_drive_without_locks_is_written_and_read_through_a_local_copy(drive):
    folder, calls = drive
    path = build_normalised(folder)
    dataset = SegmentationDataset(path, "train")
    assert dataset[0][0].shape == (1, 6, 8)
    copies = {place for place, mode in calls if mode == "r" and place.parent != folder}
    assert {place.name for place in copies} == {"set.hdf5", "normalised.hdf5"}
    assert not any(place.exists() for place in copies)  # cleaned up
    assert sorted(file.name for file in folder.iterdir()) == ["normalised.hdf5", "set.hdf5"]


def test_fault_31_other_errors_of_a_drive_are_no_reason_for_a_copy(tmp_path, monkeypatch):
    path = build(tmp_path)

    def broken(path, mode, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(h5py, "File", broken)
    monkeypatch.setattr(hdf5file.shutil, "copyfile", lambda *paths: pytest.fail("it was copied"))
    assert "cannot be opened" in refused(opened, path)
    assert "cannot be written" in refused(build, tmp_path)
