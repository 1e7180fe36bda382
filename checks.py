"""The input contract of the whole project: what logits, targets and images look like, and the one error that says so.

It runs on the CPU, before a wrong label can end the session on a GPU by its "device-side assert triggered".
"""

import torch
from torch import Tensor

IGNORE_INDEX = 255  # label of a pixel that belongs to no class: it counts in no loss and in no metric


class InputError(ValueError):
    """Something handed in is wrong; the message says what, where, what was expected, and what to do."""


def memory_is_full(error: BaseException) -> bool:
    """Whether the error of a library says so: for a full memory, few have a class of their own."""
    signs = ["allocate memory", "out of memory", "allocation failed", "filter returned failure"]  # PyTorch, zip, HDF5
    signs += ["could not create a primitive", "could not create a memory object"]  # oneDNN
    kinds = isinstance(error, (MemoryError, torch.OutOfMemoryError)), isinstance(error.__context__, MemoryError)
    return any(kinds) or any(sign in str(error) for sign in signs)


def reason_of(error: BaseException) -> str:
    """Why the machine could not do something, in its own words, one line."""
    reason = str(getattr(error, "strerror", None) or error or type(error).__name__).strip().partition("\n")[0]
    return "the memory is full" if memory_is_full(error) else reason


def check_images(images: Tensor) -> None:
    """Raise `InputError` unless `images` is a finite float tensor (B, C, H, W)."""
    if images.ndim != 4:
        raise InputError(f"images has shape {tuple(images.shape)}; expected four axes (B, C, H, W), as images[None].")
    if images.shape[-1] in (1, 3, 4) and images.shape[1] > 4:
        raise InputError(f"images has shape {tuple(images.shape)}; are its channels last? images.permute(0, 3, 1, 2)")
    if not images.is_floating_point():
        raise InputError(f"images has dtype {images.dtype}; expected a float type. Use images.float().")
    if not torch.isfinite(images).all():
        bad = torch.nonzero(~torch.isfinite(images).flatten(1).all(dim=1)).flatten().tolist()
        raise InputError(f"images holds NaN or Inf in batch position(s) {bad[:8]}; clean these images first.")


def check_pair(logits: Tensor, target: Tensor, weight: Tensor | None = None, *, labels: bool = True) -> None:
    """Raise `InputError` unless `logits` (B, C, H, W) float and `target` (B, H, W) integer belong together.

    Labels, of any integer type, lie in 0 … C−1 (with C = 1: 0 or 1) or are `IGNORE_INDEX`; a `weight` has the shape of
    `target`, and is finite and ≥ 0.  What would make the host wait for a GPU is looked at on the CPU only.
    """
    if logits.ndim != 4:
        raise InputError(f"logits has shape {tuple(logits.shape)}; expected four axes (B, C, H, W).")
    B, C, H, W = logits.shape
    if tuple(target.shape) != (B, H, W):
        raise InputError(f"target has shape {tuple(target.shape)}; expected {(B, H, W)}, as logits has {(B, C, H, W)}.")
    if target.is_floating_point() or target.dtype == torch.bool:
        raise InputError(f"target has dtype {target.dtype}; expected integer labels. Use target.long().")
    if logits.device != target.device:
        raise InputError(f"logits is on {logits.device}, target on {target.device}; move both to one device.")
    if weight is not None and weight.shape != target.shape:
        raise InputError(f"weight has shape {tuple(weight.shape)}; expected {tuple(target.shape)}, that of target.")
    if weight is not None and weight.device.type == "cpu":
        low, high = (weight if weight.is_floating_point() else weight.float()).aminmax()
        if not 0 <= low <= high < torch.inf:
            raise InputError(f"weight lies in {low:.3g} … {high:.3g}; expected finite numbers ≥ 0.")
    if labels and target.device.type == "cpu":
        check_labels(target, max(C, 2))


def check_labels(target: Tensor, num_classes: int) -> None:
    """Raise `InputError` if `target` holds a label outside 0 … num_classes−1 that is not `IGNORE_INDEX`."""
    target = target if target.dtype == torch.uint8 else target.long()  # in int8, 255 would be −1
    low, high = target.aminmax()
    if low >= 0 and high < num_classes:  # most often, and one pass in place of five
        return
    wrong = (target != IGNORE_INDEX) & ((target < 0) | (target >= num_classes))
    if wrong.any():
        allowed = f"allowed are 0 … {num_classes - 1} and {IGNORE_INDEX} (ignored): check num_classes, or use label_map"
        raise InputError(f"target holds the label(s) {torch.unique(target[wrong]).tolist()[:8]}; {allowed}.")


def two_or_more(logits: Tensor) -> Tensor:
    """Give a single-channel network its second class: (B, 1, H, W) → (B, 2, H, W); more channels stay as they are.

    Softmax over (0, z) is the sigmoid of z, so one output channel and two are the same model to every loss and metric.

    >>> two_or_more(torch.tensor([[[[1.5]]]])).flatten().tolist()
    [0.0, 1.5]
    """
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], dim=1)


def printable(name: str) -> str:
    """A file name as it can be printed and drawn: "?" for bytes that are no text, line ends and the like."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
