"""Ways to spoil a file: bytes changed anywhere, or one field of its format set to a value that nobody expects.

Each mutation is a function (content, chance, other) → content; `other` is another file, whose bytes may be mixed in.
The mutations of a format know its structure and make its checksums right again, so that what lies behind the checksum
is tried, too.  All draws come from `chance`: one seed gives one file.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random, bytes], bytes]
EXTREMES = (0, 1, 2, 3, 7, 8, 9, 16, 17, 127, 128, 255, 256, 8192, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**64 - 1)


def extreme(chance: Random, present: int, size: int, *more: int) -> int:
    """A number for a field of `size` bytes: at a border, or beside what was there."""
    number = chance.choice((*EXTREMES, *more, present + 1, present - 1, present * 2, present // 2))
    return number % 256**size


def replaced(content: bytes, place: int, piece: bytes) -> bytes:
    return content[:place] + piece + content[place + len(piece) :]


def span(content: bytes, chance: Random, longest: int = 200) -> tuple[int, int]:
    """Where a random piece begins and ends."""
    start = chance.randrange(len(content) + 1)
    return start, min(len(content), start + chance.randrange(1, chance.choice((2, 8, longest)) + 1))


# --- bytes anywhere ---


def flip_bits(content: bytes, chance: Random, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 1, 2, 8, 64, 512))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flip_at_start(content: bytes, chance: Random, other: bytes) -> bytes:
    head = min(len(content), chance.choice((64, 256)))
    return flip_bits(content[:head], chance, other) + content[head:]


def cut(content: bytes, chance: Random, other: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def cut_few(content: bytes, chance: Random, other: bytes) -> bytes:
    return content[: -chance.randrange(1, min(30, len(content)) + 1)]


def insert(content: bytes, chance: Random, other: bytes) -> bytes:
    start, stop = span(content, chance)
    return content[:start] + chance.randbytes(max(1, stop - start)) + content[start:]


def remove(content: bytes, chance: Random, other: bytes) -> bytes:
    start, stop = span(content, chance)
    return content[:start] + content[stop:]


def double(content: bytes, chance: Random, other: bytes) -> bytes:
    start, stop = span(content, chance, len(content))
    return content[:stop] + content[start:]


def zero(content: bytes, chance: Random, other: bytes) -> bytes:
    start, stop = span(content, chance, 4096)
    return content[:start] + bytes(stop - start) + content[stop:]


def noise(content: bytes, chance: Random, other: bytes) -> bytes:
    start, stop = span(content, chance)
    return content[:start] + chance.randbytes(stop - start) + content[stop:]


def swap(content: bytes, chance: Random, other: bytes) -> bytes:
    a, b, c = sorted(chance.randrange(len(content) + 1) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def splice(content: bytes, chance: Random, other: bytes) -> bytes:
    return content[: chance.randrange(len(content))] + other[chance.randrange(len(other)) :]


def splice_halves(content: bytes, chance: Random, other: bytes) -> bytes:
    return content[: len(content) // 2] + other[len(other) // 2 :]


def append(content: bytes, chance: Random, other: bytes) -> bytes:
    return content + chance.choice((other, content, chance.randbytes(40), bytes(600)))


def other_file(content: bytes, chance: Random, other: bytes) -> bytes:
    return chance.choice((other, other, b"", b"\0", b"<!DOCTYPE html><html>Sign in</html>", content[:4]))


BYTES: tuple[Mutation, ...] = (
    *(flip_bits, flip_bits, flip_at_start, cut, cut_few, insert, remove, double),
    *(zero, noise, swap, splice, splice_halves, append, other_file),
)

# --- PNG: https://www.w3.org/TR/png-3 ---


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks (kind, data) of a sound PNG."""
    found, place = [], 8
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        found.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    return found


def png_file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG with right lengths and checksums, whatever the chunks hold."""
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def rearranged(pieces: list[Any], place: int, chance: Random) -> bool:
    """Move, delete or double one of the pieces; in one case of four nothing is done, and False is returned."""
    action = chance.randrange(4)
    if action == 0:
        pieces.insert(chance.randrange(len(pieces)), pieces.pop(place))
    elif action == 1:
        del pieces[place]
    elif action == 2:
        pieces.insert(chance.randrange(len(pieces)), pieces[place])
    return action < 3


def png_header(content: bytes, chance: Random, other: bytes) -> bytes:
    """Width, height, bits, colour type, compression, filter, interlace: set one or two, and correct the checksum."""
    (kind, data), *rest = png_chunks(content)
    for _ in range(chance.choice((1, 1, 2))):
        place, size = chance.choice(((0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)))
        number = extreme(chance, int.from_bytes(data[place : place + size], "big"), size, 4, 6)
        data = replaced(data, place, number.to_bytes(size, "big"))
    return png_file([(kind, data), *rest])


def png_shuffle(content: bytes, chance: Random, other: bytes) -> bytes:
    """A chunk is moved, left out, doubled, or one of a random kind comes in."""
    chunks = png_chunks(content)
    place = chance.randrange(len(chunks))
    if not rearranged(chunks, place, chance):
        kind = bytes(chance.choices(b"ABCDtEXzPLITRNSab", k=4))
        chunks.insert(place, (kind, chance.randbytes(chance.choice((0, 9)))))
    return png_file(chunks)


def png_inside(content: bytes, chance: Random, other: bytes) -> bytes:
    """Bytes of one chunk, with the right checksum."""
    chunks = png_chunks(content)
    place = chance.choice([index for index, (_, data) in enumerate(chunks) if data])
    kind, data = chunks[place]
    chunks[place] = kind, chance.choice(BYTES[:10])(data, chance, data)
    return png_file(chunks)


def png_pixels(content: bytes, chance: Random, other: bytes) -> bytes:
    """Bytes of the unpacked rows, packed again with all checksums right: too many, too few, or other values."""
    chunks = png_chunks(content)
    rows = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
    packed = zlib.compress(chance.choice(BYTES[:14])(rows, chance, rows))
    cuts = sorted(chance.randrange(len(packed)) for _ in range(chance.choice((0, 1, 5))))
    pieces = [packed[a:b] for a, b in zip([0, *cuts], [*cuts, len(packed)])]
    before = [chunk for chunk in chunks[:-1] if chunk[0] != b"IDAT"]
    return png_file([*before, *((b"IDAT", piece) for piece in pieces), chunks[-1]])


def png_length(content: bytes, chance: Random, other: bytes) -> bytes:
    """The length that a chunk claims to have."""
    place = 8
    for _, data in png_chunks(content)[: chance.randrange(4)]:
        place += 12 + len(data)
    place = min(place, len(content) - 12)
    number = extreme(chance, int.from_bytes(content[place : place + 4], "big"), 4)
    return replaced(content, place, number.to_bytes(4, "big"))


# --- JPEG: ITU-T T.81 ---


def jpeg_segments(content: bytes) -> list[bytes]:
    """The marker segments of a sound JPEG; the last piece is all from the first scan on."""
    found, place = [content[:2]], 2
    while content[place + 1] != 0xDA:
        size = 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        found.append(content[place : place + size])
        place += size
    return [*found, content[place:]]


def jpeg_header(content: bytes, chance: Random, other: bytes) -> bytes:
    """A byte or two of the frame header: precision, sizes, components, samplings, tables."""
    pieces = jpeg_segments(content)
    place = next(index for index, piece in enumerate(pieces) if 0xC0 <= piece[1] <= 0xC2)
    at = chance.randrange(2, len(pieces[place]))
    number = extreme(chance, pieces[place][at], 1)
    pieces[place] = replaced(pieces[place], at, bytes([number]))
    return b"".join(pieces)


def jpeg_shuffle(content: bytes, chance: Random, other: bytes) -> bytes:
    """A segment is moved, left out, doubled, or its bytes are spoilt."""
    pieces = jpeg_segments(content)
    place = chance.randrange(len(pieces))
    if not rearranged(pieces, place, chance):
        pieces[place] = chance.choice(BYTES[:10])(pieces[place], chance, pieces[place])
    return b"".join(pieces)


# --- TIFF 6.0 and BigTIFF ---


def tiff_fields(content: bytes) -> tuple[str, list[tuple[int, int]]]:
    """The byte order, and (place, size) of all fields of header and first directory: tags, types, counts, values."""
    order = "<" if content[:2] == b"II" else ">"
    is_big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    wide, head = (8, 8) if is_big else (4, 4)
    place = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", content, head)[0]
    number = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", content, place)[0]
    first = place + (8 if is_big else 2)
    entries = range(first, first + number * (4 + 2 * wide), 4 + 2 * wide)
    fields = [(2, 2), (head, wide), (place, first - place), (entries.stop, wide)]
    for entry in entries:
        fields += [(entry, 2), (entry + 2, 2), (entry + 4, wide), (entry + 4 + wide, wide), (entry + 4 + wide, 2)]
    return order, fields


def tiff_field(content: bytes, chance: Random, other: bytes) -> bytes:
    order, fields = tiff_fields(content)
    end = "little" if order == "<" else "big"
    first = int.from_bytes(content[fields[1][0] : sum(fields[1])], end)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        place, size = chance.choice(fields)
        present = int.from_bytes(content[place : place + size], end)
        number = extreme(chance, present, size, 4, 5, 6, 12, 257, 258, 273, 279, first, len(content))
        content = replaced(content, place, number.to_bytes(size, end))
    return content


# --- HDF5: the superblock lies behind the 512 bytes of the user block ---


def hdf5_inside(content: bytes, chance: Random, other: bytes) -> bytes:
    """Bytes anywhere, but not in the stamp."""
    return content[:512] + chance.choice(BYTES[:14])(content[512:], chance, other[512:] or other)


def hdf5_superblock(content: bytes, chance: Random, other: bytes) -> bytes:
    place, size = chance.choice(
        [(n, 1) for n in range(520, 528)] + [(n, 2) for n in (528, 530)] + [(n, 8) for n in range(536, 608, 8)]
    )
    number = extreme(chance, int.from_bytes(content[place : place + size], "little"), size, len(content))
    return replaced(content, place, number.to_bytes(size, "little"))


def hdf5_structure(content: bytes, chance: Random, other: bytes) -> bytes:
    """A field of eight bytes after the signature of a tree, a heap, a group or a table."""
    marks = [place for name in (b"TREE", b"HEAP", b"SNOD", b"GCOL", b"OHDR") for place in places(content, name)]
    place = chance.choice(marks or [512]) + chance.choice((4, 5, 6, *range(8, 80, 8)))
    place = min(place, len(content) - 8)
    size = chance.choice((1, 2, 8))
    number = extreme(chance, int.from_bytes(content[place : place + size], "little"), size, len(content), 512)
    return replaced(content, place, number.to_bytes(size, "little"))


def places(content: bytes, mark: bytes) -> list[int]:
    found, place = [], content.find(mark)
    while place >= 0:
        found.append(place)
        place = content.find(mark, place + 1)
    return found


# --- ZIP: APPNOTE 6.3 ---

ZIP_FIELDS = {
    b"PK\x03\x04": (4, 6, 8, (14, 4), (18, 4), (22, 4), 26, 28),
    b"PK\x01\x02": (4, 6, 8, 10, (16, 4), (20, 4), (24, 4), 28, 30, 32, 34, (38, 4), (42, 4)),
    b"PK\x05\x06": (4, 6, 8, 10, (12, 4), (16, 4), 20),
}
# All as long as the first name in the archives that are spoiled
EVIL_NAMES = (
    *(b"../../../evi", b"/etc/evil.tx", b"C:\\evil\\a.tx", b"box/im/\0.tif", b"\xff\xfe\xfd/im/a.t", b"box/im/b.tif"),
    *(b"box/im/     ", b"box/im/../..", b"box//im/a.ti", b"box/im/a.ti/", b"............", b"box/im/.    "),
    *(b"            ", b"box/im/CON  ", b"box/im/a:b.t", b"\\\\host\\share", b"box/im/\n\x1b[2J", b"~/evil12.txt"),
    *(b"box/im     /", b"box\\im\\a.tif"),
)  # fmt: skip


def zip_field(content: bytes, chance: Random, other: bytes) -> bytes:
    for _ in range(chance.choice((1, 1, 2))):
        mark = chance.choice(sorted(ZIP_FIELDS))
        records = places(content, mark)
        field = chance.choice(ZIP_FIELDS[mark])
        at, size = field if isinstance(field, tuple) else (field, 2)
        place = chance.choice(records) + at if records else 0
        number = extreme(chance, int.from_bytes(content[place : place + size], "little"), size, 12, 14, 93, 99)
        content = replaced(content, place, number.to_bytes(size, "little"))
    return content


def zip_name(content: bytes, chance: Random, other: bytes) -> bytes:
    """Another name for the first file: in its own header, in the list, or in both."""
    found, name = places(content, b"box/im/a.tif"), chance.choice(EVIL_NAMES)
    for place in chance.choice((found, found, found[:1], found[-1:])):
        content = replaced(content, place, name)
    return content


def zip_kind(content: bytes, chance: Random, other: bytes) -> bytes:
    """Make an entry a link, a pipe, a device, a folder."""
    place = chance.choice(places(content, b"PK\x01\x02"))
    kind = chance.choice((0o120777, 0o010644, 0o020644, 0o060644, 0o040755, 0o140755, 0o100000, 0o177777))
    content = replaced(content, place + 4, bytes([20, chance.choice((3, 3, 0, 19))]))
    return replaced(content, place + 38, struct.pack("<I", kind << 16 | chance.choice((0, 0x10))))


# --- tar inside of gzip: POSIX.1-2001, ustar ---

TAR_FIELDS = ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (148, 8), (156, 1), (157, 100), (257, 8), (345, 155))
TAR_VALUES = (
    *(b"../evil", b"/etc/evil", b"box/im/../../..", b"\xff" * 12, b"\x80" + bytes(10) + b"\x01", b"-1"),
    *(b"", b" ", b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"D", b"K", b"L", b"M", b"S", b"V", b"g", b"x", b"box"),
    *(b"\x80" + b"\xff" * 11, b"99999999999", b"77777777777", b"00000000001", b"00000000777", b"box/im/\n\x1b[2J"),
    *(b"\xc3\x28/x", b"box/im/b.tif"),
)  # fmt: skip


def tar_field(content: bytes, chance: Random, other: bytes) -> bytes:
    """One field of a header with the checksum made right again."""
    tar = gzip.decompress(content)
    for _ in range(chance.choice((1, 1, 2))):
        start = chance.choice([place - 257 for place in places(tar, b"ustar")] or [0])
        at, size = chance.choice(TAR_FIELDS)
        tar = replaced(tar, start + at, chance.choice(TAR_VALUES)[:size].ljust(size, b"\0"))
        if chance.random() < 0.9:
            header = replaced(tar[start : start + 512], 148, b" " * 8)
            tar = replaced(tar, start + 148, b"%06o\0 " % sum(header))
    return gzip.compress(tar, mtime=0)


def tar_inside(content: bytes, chance: Random, other: bytes) -> bytes:
    """Bytes of the unpacked tar, packed again with the right checksum."""
    tar = gzip.decompress(content)
    return gzip.compress(chance.choice(BYTES[:14])(tar, chance, tar), mtime=0)


def tar_blocks(content: bytes, chance: Random, other: bytes) -> bytes:
    """Whole blocks of 512 bytes, moved, lost or doubled."""
    tar = gzip.decompress(content)
    blocks = [tar[place : place + 512] for place in range(0, len(tar), 512)]
    place, to = chance.randrange(len(blocks)), chance.randrange(len(blocks))
    block = blocks[place] if chance.random() < 0.4 else blocks.pop(place)
    if chance.random() < 0.7:
        blocks.insert(to, block)
    return gzip.compress(b"".join(blocks), mtime=0)


# --- notebooks ---

# Texts between @ are written into the JSON as they are: what a writer of JSON would refuse to write
RAW = {
    "@deep@": "[" * 100_000 + "]" * 100_000,
    "@deep objects@": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "@huge@": "9" * 5000,
    "@infinite@": "1e999",
    "@open@": '"',
    "@twice@": '{"a": 1, "a": 2}',
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3.5, 10**30, "", "x", "\ud800", "\0", "\n" * 3, "a" * 9999, "\x1b[2J", [], {}),
    *([[]], [None], [1, "a"], {"a": {}}, {"text": 1}, [{"output_type": "error"}], ["\udfff"], float("nan"), *RAW),
    *("def f(:", "(" * 300, "x" + ".a" * 3000 + "()", "-" * 5000 + "1", "x = 0777", "\\", "'''", "f'{'", "%%html"),
    *("import " + "a." * 900 + "b", "import __main__", "import " + "z" * 500, "x = '\\d'", "import \u212b"),
    *("`figures/" + "x" * 300 + ".png`", "`a\0b.png`", "![](data/\ud800.png)", "[](%00.png)", "`~x/../../y.png`"),
)  # fmt: skip


def notebook_node(content: bytes, chance: Random, other: bytes) -> bytes:
    """Delete, replace, double or rename some nodes of the tree."""
    tree = json.loads(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        nodes = [place for place in _nodes(tree) if isinstance(place[0], (dict, list))]
        if nodes:
            _change(*chance.choice(nodes), chance)
    text = json.dumps(tree)
    for mark, raw in RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text.encode()


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """All (parent, key) of a tree."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


def _change(parent: Any, key: Any, chance: Random) -> None:
    action = chance.randrange(6)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, list):
        parent.insert(chance.randrange(len(parent) + 1), parent[key])
    elif action == 2 and isinstance(parent, dict):
        parent[chance.choice(("source", "outputs", "cell_type", "data", "id", "text", "name", "é"))] = parent.pop(key)
    elif action == 3:
        parent[key] = chance.choice(([parent[key]], {"a": parent[key]}, str(parent[key])))
    else:
        parent[key] = chance.choice(VALUES)


def notebook_cells(content: bytes, chance: Random, other: bytes) -> bytes:
    """Whole cells: swapped, doubled, lost, or those of another notebook."""
    tree = json.loads(content)
    cells = tree["cells"]
    a, b = chance.randrange(len(cells)), chance.randrange(len(cells))
    action = chance.randrange(4)
    if action == 0:
        cells[a], cells[b] = cells[b], cells[a]
    elif action == 1:
        cells.insert(a, cells[b])
    elif action == 2:
        del cells[a]
    else:
        tree["cells"] = cells * chance.choice((0, 2, 20))
    return json.dumps(tree).encode()


# --- all of them ---

SPECIAL: dict[str, tuple[Mutation, ...]] = {
    "png": (png_header, png_header, png_shuffle, png_inside, png_pixels, png_length),
    "jpeg": (jpeg_header, jpeg_header, jpeg_shuffle),
    "tiff": (tiff_field,),
    "hdf5": (hdf5_inside, hdf5_inside, hdf5_superblock, hdf5_structure),
    "zip": (zip_field, zip_field, zip_name, zip_kind),
    "tar": (tar_field, tar_field, tar_inside, tar_blocks),
    "notebook": (notebook_node, notebook_node, notebook_node, notebook_cells),
}


def mutate(content: bytes, form: str, chance: Random, other: bytes, stranger: bytes) -> tuple[bytes, str]:
    """Spoil a file of the form `form` ("png", "zip", …): (content, names of the mutations); never what it was before.

    `other` is another sound file of this form, `stranger` one of another form.
    """
    while True:
        steps = [chance.choice(SPECIAL[form])] if chance.random() < 0.55 else []
        if not steps or chance.random() < 0.15:
            steps.append(chance.choice(BYTES))
        changed = content
        for step in steps:
            changed = step(changed or b"\0", chance, stranger if step is other_file else other)
        if changed != content:
            return changed, "+".join(step.__name__ for step in steps)
