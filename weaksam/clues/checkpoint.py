"""Classifiers on disk: weights, how to build the network, and its classes."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from detectron2.checkpoint.safe_files import check_weights, read_torch_file, write_torch_file

from .cam import CAMClassifier, CAMConfig
from .classifier import Classifier
from .weaktr import WeakTr, WeakTrConfig

REMEDY = "train the classifier again, or give another one"
USUAL_SIZE = 1024  # pixels and channels of networks; those of a file are as large as its weights
KINDS = {"weaktr": (WeakTrConfig, WeakTr), "cam": (CAMConfig, CAMClassifier)}


@dataclass(frozen=True)
class LoadedClassifier:
    """A network with its weights, and the names of its classes in order."""

    model: Classifier
    classes: tuple[str, ...]


def classifier_content(model: Classifier, classes: list[str]) -> dict[str, Any]:
    """What a classifier's file holds; "model" is where detectron2 looks for weights, too."""
    kind = next(kind for kind, (_, network) in KINDS.items() if isinstance(model, network))
    return {
        "model": model.state_dict(),
        "kind": kind,
        "config": _plain(asdict(model.config)),
        "classes": list(classes),
    }


def save_classifier(path: str | Path, model: Classifier, classes: list[str]) -> None:
    """Write a classifier's file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_torch_file(classifier_content(model, classes), str(path))


def load_classifier(path: str | Path) -> LoadedClassifier:
    """Read a file of `save_classifier`; a ValueError names it where it is something else."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such classifier; train one first")
    content = read_torch_file(str(path))
    keys = ("model", "kind", "config", "classes")
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise ValueError(
            f"{path}: no classifier of this package, which has {', '.join(keys)}; published WeakTr "
            "files are read by read_weaktr"
        )
    if not isinstance(content["kind"], str) or content["kind"] not in KINDS:
        raise ValueError(f"{path}: a classifier of kind {content['kind']!r}; known: {list(KINDS)}")
    check_weights(content["model"], str(path))
    classes = content["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{path}: its classes are no list of names; train a classifier again")
    model = _build(path, content)
    try:
        missing, foreign = model.load_state_dict(content["model"], strict=False)
    except RuntimeError as error:  # a tensor of another shape
        raise ValueError(f"{path}: {REMEDY}; its weights do not fit its config: {error}") from error
    if missing or foreign:
        raise ValueError(f"{path}: lacks {missing[:3]}, has the unknown {foreign[:3]}: {REMEDY}")
    return LoadedClassifier(model, tuple(classes))


def _build(path: str | Path, content: dict[str, Any]) -> Classifier:
    """The network that a file describes; ValueError for sizes that its weights cannot have."""
    config, state = content["config"], content["model"]
    largest = max([len(state), *(side for value in state.values() for side in value.shape)])
    try:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        numbers = [value for value in fields.values() if isinstance(value, int)]
        if max(numbers, default=0) > max(largest, USUAL_SIZE) or fields.get("depth", 0) > len(
            state
        ):
            raise ValueError(f"numbers up to {max(numbers)} with weights of {largest} at most")
        return KINDS[content["kind"]][0](**fields).build()
    except Exception as error:  # whatever sizes that do not fit make a network raise
        raise ValueError(
            f"{path}: its config {config!r:.200} describes no network: {error}"
        ) from error


def weights_digest(state: dict[str, Tensor]) -> str:
    """A checksum of a network's weights."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Tuples as lists, so that json and torch files give the same back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
