"""Instances: fields in step with each other under indexing, joining, copying and moving."""

import copy
import pickle

import numpy as np
import pytest
import torch

from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks


def make_instances(count: int = 4) -> Instances:
    instances = Instances((100, 80))
    instances.boxes = Boxes(torch.arange(count * 4.0).view(count, 4))
    instances.scores = torch.arange(count) / 10
    instances.names = [f"n{i}" for i in range(count)]
    instances.masks = BitMasks(torch.ones(count, 5, 6))
    instances.polygons = PolygonMasks([[np.array([0.0, 0, 1, 0, i, i])] for i in range(count)])
    return instances


def test_fields_are_attributes():
    instances = Instances((100, 80), scores=torch.ones(2))
    instances.set("classes", torch.zeros(2))
    assert instances.image_size == (100, 80)
    assert len(instances) == 2
    assert instances.has("classes") and not instances.has("boxes")
    assert instances.get("scores") is instances.scores is instances.get_fields()["scores"]
    instances.remove("classes")
    assert list(instances.get_fields()) == ["scores"]
    with pytest.raises(AttributeError, match="classes"):
        _ = instances.classes
    with pytest.raises(KeyError):
        instances.get("classes")


def test_fields_of_another_length_are_refused():
    instances = make_instances()
    with pytest.raises(ValueError, match="'extra' has 3 entries, Instances has 4"):
        instances.extra = torch.zeros(3)
    instances.scores = torch.zeros(4)  # replacing is fine


@pytest.mark.parametrize("index", range(-4, 4))
def test_an_int_keeps_one_instance(index):
    instances = make_instances()
    one = instances[index]
    assert len(one) == 1 and one.image_size == (100, 80)
    assert one.scores.tolist() == [instances.scores[index].item()]
    assert one.boxes.tensor.tolist() == [instances.boxes.tensor[index].tolist()]
    assert one.names == [instances.names[index]]
    assert len(one.polygons) == len(one.masks) == 1


@pytest.mark.parametrize("index", [4, -5])
def test_an_int_out_of_range_is_an_index_error(index):
    with pytest.raises(IndexError, match="out of range"):
        make_instances()[index]


def test_slices_and_masks_index_every_field():
    instances = make_instances()
    assert instances[1:3].names == ["n1", "n2"]
    assert len(instances[:0].polygons) == 0
    instances.remove("names")  # lists take ints and slices only
    kept = instances[torch.tensor([True, False, False, True])]
    assert torch.equal(kept.scores, instances.scores[[0, 3]])
    assert len(kept.masks) == len(kept.polygons) == len(kept.boxes) == 2
    assert torch.equal(instances[torch.tensor([2, 2])].scores, instances.scores[[2, 2]])


def test_no_field_means_no_length_and_no_iteration():
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))
    with pytest.raises(NotImplementedError):
        iter(make_instances())
    assert "num_instances=0" in str(Instances((3, 4)))
    assert "num_instances=4, image_height=100, image_width=80" in repr(make_instances())


def test_cat_joins_every_kind_of_field():
    first, second = make_instances(2), make_instances(3)
    joined = Instances.cat([first, second])
    assert len(joined) == 5
    assert joined.names == ["n0", "n1", "n0", "n1", "n2"]
    assert isinstance(joined.boxes, Boxes) and isinstance(joined.polygons, PolygonMasks)
    assert torch.equal(joined.masks.tensor, torch.ones(5, 5, 6, dtype=torch.bool))
    assert torch.equal(joined[2:].boxes.tensor, second.boxes.tensor)
    assert Instances.cat([first]) is first


def test_cat_refuses_what_does_not_belong_together():
    with pytest.raises(ValueError, match="at least one"):
        Instances.cat([])
    with pytest.raises(ValueError, match="Boxes"):
        Instances.cat([make_instances(), Boxes([])])
    with pytest.raises(ValueError, match="image size"):
        Instances.cat([Instances((1, 2), a=[1]), Instances((2, 1), a=[1])])
    with pytest.raises(ValueError, match="'a' of type ndarray"):
        Instances.cat([Instances((1, 2), a=np.ones(1))] * 2)
    with pytest.raises(KeyError):
        Instances.cat([Instances((1, 2), a=[1]), Instances((1, 2), b=[1])])


def test_to_copy_and_pickle():
    instances = make_instances()
    moved = instances.to("cpu")
    assert moved is not instances and moved.names == instances.names
    for clone in (copy.deepcopy(instances), pickle.loads(pickle.dumps(instances))):
        assert clone.image_size == (100, 80)
        assert torch.equal(clone.boxes.tensor, instances.boxes.tensor)
        clone.scores += 1
        assert instances.scores[0] == 0
