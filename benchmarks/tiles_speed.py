"""An image of 4096² by tiles: peak memory, throughput, and whether the result is that of the whole image.

Each way runs in a process of its own, so that its peak memory is its own: the tiles, and the whole image at once.
Memory is counted above what the process had before the prediction; the output of the whole image is in it.  Class maps
and logits of both are compared pixel by pixel.

    python3 benchmarks/tiles_speed.py                                   # 4096², tiles of 1024
    python3 benchmarks/tiles_speed.py --side 600 --tiles 256
    python3 benchmarks/tiles_speed.py --side 8192 --no-whole            # where the whole does not fit
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from batches import add_device, machine, print_table, wait_for_gpu
from torch import Tensor
from training_speed import WIDTHS

from training.modelfile import margin_of, predict_tiled
from unet import UNet


def peak_memory() -> float:
    """MB of this process at its highest, or of the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def predict(side: int, tile: int, device: str, precision: str, threads: int | None, file: Path) -> None:
    """Predict one image, write logits and what it took to a file."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = UNet(1, 2, WIDTHS).to(device, memory_format=torch.channels_last).eval()
    image = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    margin = margin_of(model, 1)

    def forward(pieces: Tensor) -> Tensor:
        autocast = torch.autocast(
            device, getattr(torch, precision) if precision != "float32" else None, precision != "float32"
        )
        with torch.no_grad(), autocast:
            logits = model(pieces.to(device, memory_format=torch.channels_last))
        return logits.to("cpu", torch.float32)

    forward(image[..., :64, :64])
    before, began = peak_memory(), time.perf_counter()
    logits = predict_tiled(forward, image, tile=tile, margin=margin)
    wait_for_gpu()
    result = {"seconds": time.perf_counter() - began, "peak": peak_memory(), "before": before, "margin": margin}
    torch.save({**result, "logits": logits}, file)


def measure(*arguments: Any) -> dict[str, Any]:
    """`predict` in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "result.pt"
        process = multiprocessing.get_context("spawn").Process(target=predict, args=(*arguments, file))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"the process ended with {process.exitcode}: out of memory? Try --no-whole.")
        return torch.load(file)


def main() -> None:
    parser = add_device(
        argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    )
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--tiles", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-whole", action="store_true", help="do not predict the whole image at once")
    arguments = parser.parse_args()
    print(f"{machine()}, {arguments.device}, {arguments.precision}; one image of {arguments.side}²\n")
    settings = (arguments.device, arguments.precision, arguments.threads)
    ways = {f"tiles of {tile}": tile for tile in arguments.tiles}
    whole = None if arguments.no_whole else measure(arguments.side, arguments.side, *settings)
    found = {name: measure(arguments.side, tile, *settings) for name, tile in ways.items()}
    rows = []
    for name, row in {**found, **({"the whole at once": whole} if whole else {})}.items():
        differ = difference = "–"
        if whole and row is not whole:
            differ = f"{int((row['logits'].argmax(1) != whole['logits'].argmax(1)).sum())}"
            difference = f"{float((row['logits'] - whole['logits']).abs().max()):.1e}"
        speed = arguments.side**2 / row["seconds"] / 1e6
        rows.append(
            [name, f"{row['seconds']:.2f}", f"{speed:.2f}", f"{row['peak'] - row['before']:.0f}", differ, difference]
        )
    head = ["prediction", "s", "Mpixel/s", "memory, MB", "pixels of another class", "largest difference of logits"]
    print_table(head, rows)
    print(f"Margin {next(iter(found.values()))['margin']} pixels.")


if __name__ == "__main__":
    main()
