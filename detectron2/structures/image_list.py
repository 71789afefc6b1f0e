"""A batch of images of different sizes in one padded tensor."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class ImageList:
    """N images, each in the top-left corner of its slice of one padded tensor.

    Attributes:
        tensor: (N, H, W) or (N, C1, ..., CK, H, W) with K >= 1.
        image_sizes: N pairs (height, width): the images' own sizes, without the padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """One image without its padding, (H, W) or (C1, ..., CK, H, W): a view."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """The same images with `Tensor.to(...)` applied."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad images at the right and bottom to one size and stack them.

        Args:
            tensors: at least one image, (H, W) or (C1, ..., CK, H, W); only H and W may differ.
            size_divisibility: make the common height and width multiples of this, if above 1.
            pad_value: the value of the padding.
            padding_constraints: "square_size", if above 0, is the side of the padded square;
                "size_divisibility" replaces the argument of that name.
        """
        if len(tensors) == 0:
            raise ValueError("ImageList.from_tensors needs at least one image")
        for image in tensors:
            if image.shape[:-2] != tensors[0].shape[:-2]:
                raise ValueError(
                    "images of one batch may differ only in height and width, got shapes "
                    f"{[tuple(t.shape) for t in tensors]}"
                )
        sizes = [_size_of(image) for image in tensors]
        max_size = torch.stack(sizes).max(dim=0).values  # (2,): height, width
        if padding_constraints is not None:
            square_size = padding_constraints.get("square_size", 0)
            if square_size > 0:
                if (max_size > square_size).any():
                    raise ValueError(
                        f"square_size {square_size} is smaller than the largest image, "
                        f"{max_size.tolist()} (height, width)"
                    )
                max_size = torch.full_like(max_size, square_size)
            size_divisibility = padding_constraints.get("size_divisibility", size_divisibility)
        if size_divisibility > 1:
            steps = (max_size + (size_divisibility - 1)).div(
                size_divisibility, rounding_mode="floor"
            )
            max_size = steps * size_divisibility

        # While tracing, sizes stay tensors: the trace must hold for images of other sizes.
        tracing = torch.jit.is_tracing()
        image_sizes = sizes if tracing else [(int(h), int(w)) for h, w in sizes]
        height, width = max_size if tracing else max_size.tolist()
        shape = [len(tensors), *tensors[0].shape[:-2], height, width]
        batch = tensors[0].new_full(shape, pad_value)
        for i, image in enumerate(tensors):
            batch[i, ..., : image.shape[-2], : image.shape[-1]].copy_(image)
        return ImageList(batch.contiguous(), image_sizes)


def _size_of(image: Tensor) -> Tensor:
    """(2,) int64 CPU tensor: height and width. In a trace, computed from the input's shape."""
    size = image.shape[-2:]
    if torch.jit.is_tracing():
        return torch.stack([torch.as_tensor(side) for side in size])
    return torch.as_tensor(size)
