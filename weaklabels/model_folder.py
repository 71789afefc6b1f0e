"""Published models: a folder with the weights of a network, its config, its classes and a license.

    model.safetensors   the tensors by name
    config.json         how to build the network
    package.json        a card: what it is, its classes, its license

Networks are loaded elsewhere; here are the names of the files, and the card.
"""

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from weaklabels.files import read_json, write_json

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "package.json"
VERSION = 1  # of the card
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+()-]*")  # SPDX expressions, such as CC-BY-NC-4.0


@dataclass(frozen=True)
class Card:
    """What package.json holds.

    kind: the architecture's name.
    license: of the weights, an SPDX expression.
    categories: `id` and `name` of each class, in the network's order.
    description: free text.
    tensors, sha256: number of tensors in model.safetensors, and its checksum.
    made_with: versions of the packages that made it.
    """

    kind: str
    license: str
    categories: tuple[dict[str, Any], ...]
    description: str
    tensors: int
    sha256: str
    made_with: dict[str, str]

    def __post_init__(self) -> None:
        if not LICENSE.fullmatch(self.license):
            raise ValueError(
                f"license {self.license!r}: expected an SPDX expression, such as CC-BY-4.0"
            )
        for category in self.categories:
            if not (isinstance(category.get("id"), int) and category.get("name")):
                raise ValueError(f"category {category}: expected an id and a name")


def is_model_folder(path: str | Path) -> bool:
    """Whether `path` is a folder with a card."""
    return (Path(path) / CARD).is_file()


def weights_file(path: str) -> str:
    """The file that holds the weights: that of a folder, or `path` itself."""
    return str(Path(path) / WEIGHTS) if Path(path).is_dir() else path


def write_card(folder: Path, card: Card) -> None:
    write_json(folder / CARD, {"version": VERSION, **asdict(card)}, indent=1)


def read_card(folder: str | Path) -> Card:
    """The card of a folder.

    Raises:
        ValueError: it is of another version, or lacks something.
    """
    path = Path(folder) / CARD
    content = read_json(path)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"{path}: expected the card of a model, version {VERSION}")
    names = [field.name for field in fields(Card)]
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}")
    values = {name: content[name] for name in names}
    try:
        return Card(**{**values, "categories": tuple(values["categories"])})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error
