"""Save and load the state of a training run so that no power cut, full disk or lost session costs more than one epoch.

A checkpoint is written beside the old one and renamed over it only when it is whole and on the disk; the one before is
kept.  The last 64 characters of the file are the SHA-256 of all others, because a damaged checkpoint often loads
without any error, only with other weights.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

LATEST, PREVIOUS = "latest.ckpt", "previous.ckpt"
_DIGEST = 64


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` (tensors, numbers, strings, lists, dicts) as the latest checkpoint of `folder`.

    Raises:
        OSError: if the disk is full or the folder read-only; the checkpoint on disk stays as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    part = folder / f"{LATEST}.part"
    with open(part, "wb") as file:
        file.write(content + hashlib.sha256(content).hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())
    latest = folder / LATEST
    if latest.exists():
        os.replace(latest, folder / PREVIOUS)
    os.replace(part, latest)
    return latest


def load(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the newest whole checkpoint of `folder` and a sentence on what was found wrong (empty if nothing).

    A damaged file is kept under the ending `.corrupt`.  The state is None where there is no checkpoint.
    """
    trouble = ""
    for name in (LATEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        content = path.read_bytes()
        content, digest = content[:-_DIGEST], content[-_DIGEST:]
        if hashlib.sha256(content).hexdigest().encode() == digest:
            # weights_only: a checkpoint from elsewhere can bring numbers, but no code.
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), trouble
        os.replace(path, path.with_suffix(".corrupt"))
        trouble += f"{name} was damaged and is kept as {path.with_suffix('.corrupt').name}. "
    return None, trouble and f"{trouble}No older checkpoint is whole: started over. "
