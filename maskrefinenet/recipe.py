"""What the reference's training and ours do differently: each difference is an option of its own.

`--recipe` gives every option its value, and the option's own flag overrides it. Refinement is the
same for both: the whole crop is squashed to the network's square (SPEC 4.2, as the reference does).
"""

from dataclasses import dataclass, fields

# Option of a recipe -> what may be chosen and what it means. The first choice is the reference's.
CHOICES: dict[str, dict[str, str]] = {
    "crop_resize": {
        "aspect": "short side to size * s, long side in proportion, s in 0.5..1.5",
        "square": "both sides to size * s",
    },
    "stem": {
        "random": "the whole first convolution starts at random",
        "pretrained": "its image channels start from the encoder's weights",
    },
    "dice": {
        "columns": "sums over batch and rows, mean over columns",
        "pixels": "sums over batch and pixels",
    },
    "matching": {
        "nearest": "each prediction with the nearest instance of its class",
        "one_to_one": "Hungarian, no farther than half the diagonal of the instance's box",
    },
    "resampling": {
        "pillow": "Pillow's, which averages where it shrinks",
        "opencv": "OpenCV's, that of refinement",
    },
    "training_point": {
        "crop": "center of what is left of the target; nothing is drawn where no pixel is left",
        "instance": "as crop, but taken before mirroring, and of a lost target where its center is",
    },
    "amp": {
        "auto": "mixed precision on CUDA",
        "off": "float32",
        "on": "mixed precision; needs CUDA",
    },
}


@dataclass(frozen=True)
class Recipe:
    """A value for each of `CHOICES`; the defaults are the reference's (SPEC 4.2 to 4.4)."""

    crop_resize: str = "aspect"
    stem: str = "random"
    dice: str = "columns"
    matching: str = "nearest"
    resampling: str = "pillow"
    training_point: str = "crop"
    amp: str = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, allowed = getattr(self, field.name), CHOICES[field.name]
            if value not in allowed:
                flag = "--" + field.name.replace("_", "-")
                raise ValueError(f"{flag} {value!r}; expected one of {', '.join(allowed)}")

    def __str__(self) -> str:
        """The recipe's name, or its options, for people."""
        values = [f"{field.name} {getattr(self, field.name)}" for field in fields(self)]
        return next((n for n, known in RECIPES.items() if known == self), ", ".join(values))

    def mixed_precision(self, device_type: str) -> bool:
        """Whether training on a device ("cuda", "cpu") is to use mixed precision."""
        return self.amp == "on" or (self.amp == "auto" and device_type == "cuda")


RECIPES = {
    "paper": Recipe(),
    "ours": Recipe(
        crop_resize="square",
        stem="pretrained",
        dice="pixels",
        matching="one_to_one",
        resampling="opencv",
        training_point="instance",
        amp="off",
    ),
}
