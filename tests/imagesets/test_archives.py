"""Tests of archives.py: every trick that an archive can play is refused, in a .zip and in a .tar.gz."""

from __future__ import annotations

import errno
import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from checks import InputError
from imagesets import archives
from imagesets.archives import unpack

DATA = random.Random(0).randbytes(200_000)  # does not pack well
GOOD = {"box/a.bin": DATA, "box/b.bin": DATA}
Pack = Callable[[dict[str, bytes]], bytes]


def pack_zip(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as packed:
        for name, data in entries.items():
            packed.writestr(zipfile.ZipInfo(name) if compression == zipfile.ZIP_STORED else name, data)
    return stream.getvalue()


def pack_tar(entries: dict[str, bytes], *special: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
        for info in special:
            packed.addfile(info)
    return stream.getvalue()


def special(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, to, 0o755
    return info


def write(tmp_path: Path, content: bytes) -> Path:
    """Write an archive; its kind shows in its first bytes."""
    path = tmp_path / ("a.zip" if content[:2] == b"PK" else "a.tar.gz")
    path.write_bytes(content)
    return path


def refused(tmp_path: Path, content: bytes) -> str:
    """Unpack `content` into `tmp_path`/in/out, which must raise; return the message."""
    with pytest.raises(InputError) as caught:
        unpack(write(tmp_path, content), tmp_path / "in" / "out")
    message = str(caught.value)
    assert len(message.splitlines()) <= 4
    return message


def written(tmp_path: Path) -> list[str]:
    folder = tmp_path / "in" / "out"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


both = pytest.mark.parametrize("pack", [pack_zip, pack_tar])


@both
def test_files_and_folders_are_unpacked(pack: Pack, tmp_path: Path) -> None:
    entries = {"./box/deep/er/a.bin": DATA, "box/b.bin": b"", "ü ß.bin": b"x"}
    unpack(write(tmp_path, pack(entries)), tmp_path / "in" / "out")
    assert written(tmp_path) == ["box/b.bin", "box/deep/er/a.bin", "ü ß.bin"]
    assert (tmp_path / "in/out/box/deep/er/a.bin").read_bytes() == DATA


def test_folders_are_entries_too_and_modes_are_not_taken(tmp_path: Path) -> None:
    locked = special("box/", tarfile.DIRTYPE)
    locked.mode = 0  # a folder that nobody may enter
    unpack(write(tmp_path, pack_tar(GOOD, locked)), tmp_path / "in" / "out")
    assert stat.S_IMODE((tmp_path / "in/out/box").stat().st_mode) & 0o700 == 0o700


# 86: paths and links


OUTSIDE = ["../evil", "box/../../evil", "/evil", "//evil", "..\\evil", "\\evil", "C:\\evil", "C:/evil", "C:evil"]


@both
@pytest.mark.parametrize("name", OUTSIDE)
def test_fault_86_a_path_out_of_the_folder(name: str, pack: Pack, tmp_path: Path) -> None:
    assert "points outside" in refused(tmp_path, pack({name: b"evil", **GOOD}))
    assert written(tmp_path) == []
    assert not list(tmp_path.rglob("*evil"))
    assert not Path("/evil").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR], ids=["symlink", "pipe", "device"])
def test_fault_86_links_and_devices_in_a_zip(kind: int, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        info = zipfile.ZipInfo("box/link")
        info.create_system, info.external_attr = 3, (kind | 0o777) << 16
        packed.writestr(info, b"/etc/passwd")
    assert "is a link or a device" in refused(tmp_path, stream.getvalue())
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE],
    ids=["symlink", "hard link", "pipe", "device", "disk"],
)
def test_fault_86_links_and_devices_in_a_tar(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entry = special("box/link", kind, to=str(tmp_path / "secret"))
    assert "is a link or a device" in refused(tmp_path, pack_tar(GOOD, entry))
    assert written(tmp_path) == sorted(GOOD)  # those before it: a tar is checked on the way
    assert not (tmp_path / "in/out/box/link").is_symlink()


def test_fault_86_a_file_through_a_link_never_gets_out(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        packed.addfile(special("box", tarfile.SYMTYPE, to=str(tmp_path)))
        info = tarfile.TarInfo("box/evil")
        info.size = 4
        packed.addfile(info, io.BytesIO(b"evil"))
    refused(tmp_path, stream.getvalue())
    assert not (tmp_path / "evil").exists()


# 87: bombs


@both
def test_fault_87_a_bomb_is_refused_by_its_ratio(pack: Pack, tmp_path: Path) -> None:
    assert "times as many" in refused(tmp_path, pack({"box/bomb.bin": bytes(10**7)}))  # packs to 10 kB
    limit = archives.MAX_RATIO * 11_000
    assert sum(path.stat().st_size for path in (tmp_path / "in").rglob("*.bin")) <= limit


@pytest.mark.parametrize(("limit", "value"), [("MAX_BYTES", 2 * len(DATA)), ("MAX_ENTRIES", 2)])
def test_fault_87_size_and_entries_of_a_zip(
    limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pack_zip(GOOD | {"c": b"x"}, zipfile.ZIP_STORED)
    monkeypatch.setattr(archives, limit, value)
    assert str(value) in refused(tmp_path, content)
    assert written(tmp_path) == []
    monkeypatch.setattr(archives, limit, value + 1)
    unpack(write(tmp_path, content), tmp_path / "in" / "out")


def test_fault_87_size_and_entries_of_a_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pack_tar(GOOD)
    size = len(gzip.decompress(content))  # headers count, too
    for limit, value in (("MAX_BYTES", size), ("MAX_ENTRIES", 2)):
        with monkeypatch.context() as now:
            now.setattr(archives, limit, value - 1)
            assert str(value - 1) in refused(tmp_path, content)
            now.setattr(archives, limit, value)
            unpack(write(tmp_path, content), tmp_path / "in" / "out")


def test_fault_87_a_zip_cannot_lie_about_sizes(tmp_path: Path) -> None:
    content = bytearray(pack_zip({"box/a.bin": DATA, "box/b.bin": DATA + bytes(10**7)}))
    directory = content.rindex(b"PK\x01\x02")  # the record of b.bin: its unpacked size lies 24 bytes further on
    assert struct.unpack_from("<I", content, directory + 24)[0] == len(DATA) + 10**7
    struct.pack_into("<I", content, directory + 24, len(DATA))
    assert "cannot be unpacked" in refused(tmp_path, bytes(content))
    assert (tmp_path / "in/out/box/b.bin").stat().st_size <= len(DATA)  # zipfile stopped at the declared size


def test_fault_87_holes_of_a_sparse_file_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("box/hole.bin")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(2**33), "GNU.sparse.map": f"{2**33},0"}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", format=tarfile.PAX_FORMAT) as packed:
        packed.addfile(info)
    assert "is a link or a device" in refused(tmp_path, stream.getvalue())  # 8 GB of zeros otherwise
    assert written(tmp_path) == []


def test_fault_87_what_comes_after_the_end_of_a_tar_counts(tmp_path: Path) -> None:
    content = gzip.compress(gzip.decompress(pack_tar({"a.bin": b"x"})) + bytes(10**8))
    assert "times as many" in refused(tmp_path, content)


# damage


def damaged_zip(kind: str) -> bytes:
    content = bytearray(pack_zip(GOOD, zipfile.ZIP_STORED if kind == "beyond the end" else zipfile.ZIP_DEFLATED))
    first, last = content.index(b"PK\x01\x02"), content.rindex(b"PK\x01\x02")  # records of the directory
    if kind == "cut":
        del content[len(content) // 2 :]
    elif kind == "flipped bits":
        content[200] ^= 0xFF
    elif kind == "no deflate stream":
        content[30 + len("box/a.bin")] = 0xFF  # the first byte after the header: a block type that is not defined
    elif kind == "beyond the end":
        struct.pack_into("<II", content, last + 20, 10**6, 10**6)  # packed and unpacked size of the last entry
    elif kind == "password":
        content[6] |= 1  # the flag in the header of the first entry, and in the directory
        content[first + 8] |= 1
    return bytes(content)


def damaged_tar(kind: str) -> bytes:
    content = bytearray(pack_tar(GOOD))
    if kind == "cut":
        del content[len(content) // 2 :]
    elif kind == "end cut off":
        del content[-8:]  # the checksum and the length
    elif kind == "flipped bits":
        content[1000] ^= 0xFF  # in the random bytes, which are stored as they are: only the checksum knows
    elif kind == "no deflate stream":
        content[10 + content[10:].index(b"\0")] = 0xFF
    elif kind == "no tar":
        content = bytearray(gzip.compress(DATA))
    elif kind == "no gzip":
        content = bytearray(gzip.decompress(bytes(content)))
    elif kind == "half an entry":
        content = bytearray(gzip.compress(gzip.decompress(bytes(content))[:1000]))
    return bytes(content)


@pytest.mark.parametrize("kind", ["cut", "flipped bits", "no deflate stream", "beyond the end", "password"])
def test_fault_83_a_damaged_zip_is_refused(kind: str, tmp_path: Path) -> None:
    message = refused(tmp_path, damaged_zip(kind))
    assert "cannot be unpacked" in message and "unpacked: ." not in message
    assert ("it asks for a password" in message) == (kind == "password")


@pytest.mark.parametrize(
    "kind", ["cut", "end cut off", "flipped bits", "no deflate stream", "no tar", "no gzip", "half an entry"]
)
def test_fault_83_a_damaged_tar_is_refused(kind: str, tmp_path: Path) -> None:
    message = refused(tmp_path, damaged_tar(kind))
    assert "cannot be unpacked" in message and "unpacked: ." not in message


def test_fault_83_a_tar_cut_at_any_place_is_refused(tmp_path: Path) -> None:
    whole = pack_tar({"box/a.txt": b"hello", "box/b.txt": DATA[:300]})
    for end in range(1, len(whole), 7):
        refused(tmp_path, whole[:end])


@pytest.mark.parametrize("cut", [slice(0, 50), slice(300, 360)])
def test_fault_83_a_zip_that_lacks_bytes_in_front_of_its_list(cut: slice, tmp_path: Path) -> None:
    content = bytearray(pack_zip({"a.bin": DATA[:300], "b.bin": DATA[:300]}, zipfile.ZIP_STORED))
    del content[cut]  # all places are counted from the list, so that of the first file lies before the beginning
    assert "cannot be unpacked" in refused(tmp_path, bytes(content))


def test_fault_83_a_zip_whose_names_are_no_text(tmp_path: Path) -> None:
    content = bytearray(pack_zip({"box/a.bin": b"x"}))
    first = content.index(b"PK\x01\x02")
    content[first + 9] |= 8  # "the name is UTF-8", in the list
    content[first + 46] = 0xDB
    assert "cannot be unpacked" in refused(tmp_path, bytes(content))


@both
def test_a_name_that_no_disk_can_write(pack: Pack, tmp_path: Path) -> None:
    assert "cannot be unpacked" in refused(tmp_path, pack({"x" * 300: b"1"}))


def test_what_is_wrong_with_the_disk_is_no_fault_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(write(tmp_path, pack_zip(GOOD)), tmp_path / "in" / "out")


def test_fault_83_a_file_of_a_zip_that_comes_out_empty_is_missed(tmp_path: Path) -> None:
    content = bytearray(pack_zip({"a.bin": DATA[:300]}, zipfile.ZIP_STORED))
    struct.pack_into("<II", content, content.index(b"PK\x01\x02") + 16, 0, 0)  # checksum and packed size of nothing
    assert "has not the size that it declares" in refused(tmp_path, bytes(content))


def test_fault_83_a_file_of_a_zip_that_comes_out_as_a_folder_is_missed(tmp_path: Path) -> None:
    content = pack_zip({"box/_.bin": DATA[:300]}, zipfile.ZIP_STORED).replace(b"box/_.bin", b"box/\0.bin")
    assert "has not the size that it declares" in refused(tmp_path, content)  # Python cuts a name at its zero byte


@pytest.mark.parametrize("damage", [bytes(148) + b"\xff" * 12, b"z" * 512])
def test_fault_83_a_damaged_header_is_not_the_end_of_a_tar(damage: bytes, tmp_path: Path) -> None:
    """`tarfile` stops there without a word, and all files behind it are missing."""
    tar = bytearray(gzip.decompress(pack_tar({"a.bin": DATA[:512], "b.bin": DATA[:512]})))
    tar[1024 : 1024 + len(damage)] = damage  # the header of b.bin
    assert "an entry is damaged" in refused(tmp_path, gzip.compress(bytes(tar)))


def test_fault_83_half_a_header_is_not_the_end_of_a_tar(tmp_path: Path) -> None:
    tar = gzip.decompress(pack_tar({"a.bin": DATA[:512], "b.bin": DATA[:512]}))
    assert "an entry is damaged" in refused(tmp_path, gzip.compress(tar[:1300]))


@both
def test_a_file_and_a_folder_of_one_name_are_refused(pack: Pack, tmp_path: Path) -> None:
    assert "cannot be unpacked" in refused(tmp_path, pack({"a": b"file", "a/b": b"in it"}))


def test_a_damaged_lzma_stream_is_refused(tmp_path: Path) -> None:
    content = bytearray(pack_zip({"a.bin": DATA}, zipfile.ZIP_LZMA))
    content[60:160] = bytes(100)
    assert "cannot be unpacked" in refused(tmp_path, bytes(content))
