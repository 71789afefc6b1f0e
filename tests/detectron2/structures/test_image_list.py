"""ImageList: padding to a common size, and views without the padding."""

import pytest
import torch

from detectron2.structures import ImageList


@pytest.mark.parametrize("divisibility,padded", [(0, (7, 9)), (1, (7, 9)), (4, (8, 12))])
def test_images_are_padded_at_the_right_and_bottom(divisibility, padded):
    images = [torch.rand(3, 5, 9), torch.rand(3, 7, 2)]
    batch = ImageList.from_tensors(images, divisibility, pad_value=-1.0)
    assert batch.tensor.shape == (2, 3, *padded)
    assert batch.image_sizes == [(5, 9), (7, 2)] and len(batch) == 2
    for image, view in zip(images, batch, strict=True):
        assert torch.equal(image, view)
    inside = sum(image.numel() for image in images)
    assert (batch.tensor == -1).sum() == batch.tensor.numel() - inside
    assert torch.equal(batch[1], images[1]) and torch.equal(batch[-1], images[1])


def test_one_image_and_maps_without_channels_and_integer_types():
    batch = ImageList.from_tensors([torch.ones(5, 6, dtype=torch.uint8)], 4, pad_value=255)
    assert batch.tensor.shape == (1, 8, 8) and batch.tensor.dtype == torch.uint8
    assert (batch.tensor == 255).sum() == 64 - 30
    images = [torch.rand(2, 3, 4, 4), torch.rand(2, 3, 5, 3)]
    assert ImageList.from_tensors(images).tensor.shape == (2, 2, 3, 5, 4)


def test_the_batch_is_a_copy():
    image = torch.zeros(3, 4, 4)
    ImageList.from_tensors([image]).tensor.add_(1)
    assert image.sum() == 0


def test_padding_constraints():
    images = [torch.rand(3, 5, 9), torch.rand(3, 7, 2)]
    square = ImageList.from_tensors(images, 4, padding_constraints={"square_size": 10})
    assert square.tensor.shape[-2:] == (12, 12)  # the divisibility still holds
    constraints = {"square_size": 0, "size_divisibility": 5}
    other = ImageList.from_tensors(images, 4, padding_constraints=constraints)
    assert other.tensor.shape[-2:] == (10, 10)
    with pytest.raises(ValueError, match=r"square_size 8 .* \[7, 9\]"):
        ImageList.from_tensors(images, padding_constraints={"square_size": 8})


def test_bad_batches_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        ImageList.from_tensors([])
    with pytest.raises(ValueError, match="only in height and width"):
        ImageList.from_tensors([torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)])


def test_to_and_device():
    batch = ImageList.from_tensors([torch.rand(3, 4, 5)])
    half = batch.to(torch.float16)
    assert half.tensor.dtype == torch.float16 and half.image_sizes == batch.image_sizes
    assert batch.device == torch.device("cpu")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "examples,others,shape",
    [
        ([(3, 10, 10)], [(3, 15, 20)], (1, 3, 16, 20)),
        ([(3, 12, 12)], [(3, 15, 20)], (1, 3, 16, 20)),
        ([(10, 10)], [(15, 20)], (1, 16, 20)),
        ([(3, 16, 10), (3, 13, 11)], [(3, 25, 20), (3, 10, 10)], (2, 3, 28, 20)),
    ],
)
def test_a_trace_holds_for_images_of_other_sizes(examples, others, shape):
    def batch_and_sizes(tensors: list[torch.Tensor]):
        batch = ImageList.from_tensors(tensors, 4)
        return batch.tensor, batch.image_sizes

    traced = torch.jit.trace(batch_and_sizes, ([torch.ones(s) for s in examples],))
    tensor, sizes = traced([torch.ones(s) for s in others])
    assert tensor.shape == shape
    assert [size.tolist() for size in sizes] == [list(s[-2:]) for s in others]
