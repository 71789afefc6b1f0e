"""The protocol of data augmentation: an `Augmentation` looks at inputs and returns a `Transform`.

A transform is deterministic and applies to anything in the image's frame (image, boxes, masks,
points); an augmentation is the random policy that makes one.
"""

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; expected one of {list(allowed)}")


class Augmentation:
    """A policy that makes a transform from an input, often at random (numpy's global generator).

    Subclasses define `get_transform`; its parameters name the attributes of `AugInput` that it
    needs. A single parameter is always the image.
    """

    input_args: tuple[str, ...] | None = None  # overrides the parameter names of `get_transform`

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Store constructor arguments (given as `locals()`) as attributes, which repr shows."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """The transform for one input, given those of its attributes that parameters name."""
        raise NotImplementedError(f"{type(self).__name__} must define get_transform()")

    def __call__(self, aug_input: "AugInput") -> Transform:
        """Make a transform for `aug_input`, apply it to it in place, and return it."""
        transform = self.get_transform(*_needed_inputs(self, aug_input))
        if not isinstance(transform, Transform):
            raise TypeError(
                f"{type(self).__name__}.get_transform() must return a Transform, "
                f"got {type(transform).__name__}"
            )
        aug_input.transform(transform)
        return transform

    def _rand_range(
        self, low: float = 1.0, high: float | None = None, size: int | tuple | None = None
    ) -> Any:
        """Uniform random number(s) in [low, high), or in [0, low) without `high`."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, size)

    def __repr__(self) -> str:
        """`Name(argument=value, ...)` without the defaults."""
        shown = []
        for name, parameter in inspect.signature(self.__init__).parameters.items():
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if variadic or not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is not parameter.default:
                text = pprint.pformat(value)
                shown.append(f"{name}={'...' if chr(10) in text else text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


def _needed_inputs(augmentation: Augmentation, aug_input: "AugInput") -> list[Any]:
    """The attributes of `aug_input` that `get_transform` asks for by parameter name."""
    if augmentation.input_args is None:
        parameters = list(inspect.signature(augmentation.get_transform).parameters.values())
        if len(parameters) == 1:
            names: tuple[str, ...] = ("image",)
        else:
            for parameter in parameters:
                if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    raise TypeError(
                        f"{type(augmentation).__name__}.get_transform() has the parameter "
                        f"'{parameter}'; name each needed input"
                    )
            names = tuple(parameter.name for parameter in parameters)
        augmentation.input_args = names
    for name in augmentation.input_args:
        if not hasattr(aug_input, name):
            raise AttributeError(
                f"{type(augmentation).__name__}.get_transform() needs input '{name}'; "
                f"{type(aug_input).__name__} has {sorted(vars(aug_input))}"
            )
    return [getattr(aug_input, name) for name in augmentation.input_args]


class _FixedTransform(Augmentation):
    """The policy that always gives one transform."""

    def __init__(self, tfm: Transform):
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def _transform_to_aug(tfm_or_aug: Augmentation | Transform) -> Augmentation:
    """An augmentation as it is, or a plain transform wrapped into one."""
    if isinstance(tfm_or_aug, Augmentation):
        return tfm_or_aug
    if isinstance(tfm_or_aug, Transform):
        return _FixedTransform(tfm_or_aug)
    raise TypeError(f"expected an Augmentation or a Transform, got {tfm_or_aug!r}")


class AugmentationList(Augmentation):
    """Augmentations applied one after another, each to the result of the previous one."""

    def __init__(self, augs: Sequence[Augmentation | Transform]):
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input: "AugInput") -> TransformList:
        """Apply all in place; returns the transforms in order."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(repr, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """What augmentations see and change: an image with its boxes and label map.

    Custom augmentations may ask for other attributes, which stay as they are.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        sem_seg: np.ndarray | None = None,
    ):
        """
        Args:
            image: (H, W) or (H, W, C); uint8 in [0, 255], or floating point in [0, 1] or [0, 255].
            boxes: (N, 4) float, x0, y0, x1, y1 in pixels.
            sem_seg: (H, W) uint8 label map.
        """
        _check_image(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply `tfm` to everything held, in place."""
        apply = {
            "image": tfm.apply_image,
            "boxes": tfm.apply_box,
            "sem_seg": tfm.apply_segmentation,
        }
        for name, function in apply.items():
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, function(value))

    def apply_augmentations(
        self, augmentations: Sequence[Augmentation | Transform]
    ) -> TransformList:
        """The same as `AugmentationList(augmentations)(self)`."""
        return AugmentationList(augmentations)(self)


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"the image must be a numpy array, got {type(image).__name__}")
    if np.issubdtype(image.dtype, np.integer) and image.dtype != np.uint8:
        raise ValueError(f"image has dtype {image.dtype}; expected uint8 or floating point")
    if image.ndim not in (2, 3):
        raise ValueError(f"image has shape {image.shape}; expected (H, W) or (H, W, C)")


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: AugInput | np.ndarray
) -> tuple[AugInput | np.ndarray, TransformList]:
    """Apply augmentations to an image or an `AugInput`; returns the result and the transforms."""
    if isinstance(inputs, np.ndarray):
        aug_input = AugInput(inputs)
        transforms = aug_input.apply_augmentations(augmentations)
        return aug_input.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


# Names in older code
TransformGen = Augmentation
StandardAugInput = AugInput
apply_transform_gens = apply_augmentations
