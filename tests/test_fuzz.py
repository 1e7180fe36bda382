"""Spoilt files of all kinds, some hundreds, and whether the judge of `benchmarks/fuzz.py` sees what is wrong."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import tifffile
from PIL import Image

from checks import InputError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the fuzzer forks")
pytest.importorskip("resource")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fuzz  # noqa: E402
import mutations  # noqa: E402
import referees  # noqa: E402

NUMBERS = {"sealed": 12, "notebook": 60}  # each sealed file costs a fifth of a second; of the other kinds 90


@pytest.mark.parametrize("kind", fuzz.MAKERS)
def test_spoilt_files_are_read_rightly_or_refused_in_our_words(kind: str) -> None:
    cases = [(kind, number) for number in range(NUMBERS.get(kind, 90))]
    found = list(fuzz.outcomes(cases, seed=7))
    assert [number for _, number, _, _ in found] == list(range(len(cases)))
    assert [case for case in found if case[3].word not in ("fine", "refused")] == []
    assert {case[3].word for case in found} == ({"refused"} if kind == "hdf5" else {"fine", "refused"})


# --- the judge ---


@pytest.mark.parametrize("kind", [kind for kind in fuzz.MAKERS if kind != "hdf5"])
def test_every_sound_file_is_fine(kind: str, tmp_path: Path) -> None:
    for original in fuzz.originals(kind):
        for seed in (2, 4):  # both ways to read it
            case = fuzz.Case(kind, original.content, original, "as it was", Random(seed))
            outcome = judged(case, tmp_path)
            assert outcome.word == "fine", (original.name, outcome)


def judged(case: fuzz.Case, folder: Path) -> fuzz.Outcome:
    """The word for one file; the folder of temporary files is that of the system, so what lies there does not count."""
    with pytest.MonkeyPatch.context() as patch:
        (folder / "scratch").mkdir(exist_ok=True)
        patch.setattr(fuzz.tempfile, "tempdir", str(folder / "scratch"))
        return fuzz.judge(case, folder / "box")


def failing(action) -> fuzz.Outcome:
    """What the judge says when our reader does `action`, in a child."""

    def look(case, box):
        action(box)
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fuzz.LOOKS, "mask", look)
        patch.setattr(fuzz, "SECONDS", 2.0)
        ((_, _, _, outcome),) = fuzz.outcomes([("mask", 0)], seed=0)
    return outcome


def refuse(text: str, cause: Exception | None = None):
    def action(box: Path) -> None:
        raise InputError(text) from cause

    return action


def name() -> str:
    return fuzz.spoilt("mask", 0, 0).original.name


@pytest.mark.parametrize(
    ("word", "detail", "action"),
    [
        ("refused", "", lambda box: refuse(f"{name()} is damaged.")(box)),
        ("foreign", "KeyError", lambda box: {}["key"]),
        ("foreign", "5 lines", lambda box: refuse(f"{name()}\n1\n2\n3\n4")(box)),
        ("foreign", "does not name the file", refuse("It is damaged.")),
        ("foreign", "cannot be printed", lambda box: refuse(f"{name()} \x1b[2J")(box)),
        ("foreign", "a line of", lambda box: refuse(f"{name()} {'x' * 400}")(box)),
        ("foreign", "a trace", lambda box: refuse(f"{name()} <class 'int'>")(box)),
        ("foreign", "only the message", lambda box: refuse(f"bad {name()}", OSError(f"bad {name()}"))(box)),
        ("foreign", "a warning", lambda box: warnings.warn("odd", stacklevel=1)),
        ("foreign", "printed: noise", lambda box: os.write(2, b"noise")),
        ("foreign", "the process ended: -6", lambda box: os.abort()),
        ("hang", "no answer", lambda box: time.sleep(60)),
        ("memory", "", lambda box: bytearray(8 * fuzz.GIB)),
        ("memory", "", lambda box: refuse(f"{name()} is large.", MemoryError())(box)),
        ("memory", "GiB", lambda box: bytearray(b"x") * (5 * fuzz.GIB // 4)),
        ("leftover", "found.txt", lambda box: (box / "found.txt").write_text("x")),
        ("leftover", "beside.txt", lambda box: (box.parent / "beside.txt").write_text("x")),
        ("leftover", "tmp.txt", lambda box: Path(fuzz.tempfile.gettempdir(), "tmp.txt").write_text("x")),
    ],
)
def test_each_fault_gets_its_word(word: str, detail: str, action) -> None:
    outcome = failing(action)
    assert outcome.word == word, outcome
    assert detail in outcome.detail


def test_other_pixels_than_those_of_the_file_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = fuzz.originals("image")[0]
    case = fuzz.Case("image", original.content, original, "", Random(2))
    monkeypatch.setattr(fuzz, "read_image", lambda path: original.truth[::-1])
    assert judged(case, tmp_path).word == "wrong"


# --- the mutations ---


@pytest.mark.parametrize("kind", fuzz.MAKERS)
def test_one_seed_gives_one_file_and_never_the_sound_one(kind: str) -> None:
    made = [fuzz.spoilt(kind, number, 3) for number in range(60)]
    assert [case.content for case in made] == [fuzz.spoilt(kind, number, 3).content for number in range(60)]
    assert all(case.content != case.original.content for case in made)
    assert len({case.content for case in made}) > 50
    assert len(Counter(case.how for case in made)) > 12


def test_a_table_has_a_row_for_each_kind() -> None:
    lines = fuzz.table({"zip": Counter(fine=2, wrong=1), "tar": Counter(refused=4, alone=1)}).splitlines()
    assert lines[2:] == [
        "| zip | 3 | 2 | 0 | 0 | 1 | 0 | 0 | 0 | 0 |",
        "| tar | 4 | 0 | 4 | 0 | 0 | 0 | 0 | 0 | 1 |",
        "| all | 7 | 2 | 4 | 0 | 1 | 0 | 0 | 0 | 1 |",
    ]


# --- the referees ---


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "1", "P", "I;16"])
def test_the_referee_of_png_reads_what_pillow_reads(mode: str) -> None:
    values = fuzz.pixels(3, 20, 27, 4)
    stored = values[..., 0].astype(np.uint16) * 257 if mode == "I;16" else values
    image = Image.fromarray(stored) if mode == "I;16" else Image.fromarray(values).convert(mode)
    found = referees.png(fuzz.saved(image, "PNG"))
    wanted = np.asarray(image)
    assert np.array_equal(found.samples.reshape(wanted.shape), wanted)


def test_the_referee_of_png_knows_interlaced_rows() -> None:
    # Adam7 of a picture of 3 × 3: pass 1 holds its corner, pass 4 … 7 the others, in the order of the standard
    order = [[0, 5, 3], [7, 8, 9], [1, 6, 4]]
    passes = [[[0]], [], [], [[3]], [[1, 4]], [[5], [6]], [[7, 8, 9]]]
    rows = b"".join(bytes([0, *row]) for piece in passes for row in piece)
    header = (3).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 1])
    content = mutations.png_file([(b"IHDR", header), (b"IDAT", mutations.zlib.compress(rows)), (b"IEND", b"")])
    assert referees.png(content).samples[..., 0].tolist() == order
    assert np.asarray(Image.open(io.BytesIO(content))).tolist() == order


def test_the_referee_of_png_sees_each_flipped_bit() -> None:
    content = fuzz.saved(fuzz.pixels(3, 5, 6), "PNG")
    for place in range(8, len(content)):
        with pytest.raises((referees.Unsound, referees.Unknown)):
            referees.png(mutations.replaced(content, place, bytes([content[place] ^ 4])))


@pytest.mark.parametrize("number", range(9))  # all but the packing that it does not know
def test_the_referee_of_tiff_reads_what_tifffile_reads(number: int) -> None:
    content = fuzz.originals("tiff")[number].content
    wanted = tifffile.imread(io.BytesIO(content))
    wanted = np.moveaxis(wanted, 0, -1) if wanted.shape[0] == 3 else wanted
    assert np.array_equal(referees.tiff(content), wanted)


def test_the_referees_of_archives_read_what_was_packed() -> None:
    for original in fuzz.originals("zip"):
        assert referees.zip_files(original.content) == original.truth
        with zipfile.ZipFile(io.BytesIO(original.content)) as packed:
            assert {name: packed.read(name) for name in packed.namelist()} == original.truth
    short = io.BytesIO()
    with tarfile.open(fileobj=short, mode="w:gz") as packed_tar:
        info = tarfile.TarInfo("box/a.txt")
        info.size = 600
        packed_tar.addfile(info, io.BytesIO(b"a" * 600))
        packed_tar.addfile(tarfile.TarInfo("box/b.txt"))
    assert referees.tar_files(short.getvalue()) == {"box/a.txt": b"a" * 600, "box/b.txt": b""}
    with pytest.raises(referees.Unknown):  # it holds a long name
        referees.tar_files(fuzz.originals("tar")[0].content)
