"""What a run leaves, by path: digests of what has to be the same in every run."""

import hashlib
from pathlib import Path
from typing import Any

import torch

# What tells of the run: times, what each start appends, what is only there meanwhile.
OF_THE_RUN = {"log.txt", "metrics.json", "config.yaml", "last_checkpoint", "report.json"}
OF_THE_RUN |= {"report.html", "report.md", "run.json", "train.json"}
FOLDERS_OF_THE_RUN = {"stages", "figure", "figures", "pictures", "sheets"}
MEANWHILE = (".parts", ".shards")


def results(folder: Path) -> dict[str, str]:
    """Digests of a run's results. Of checkpoints it is that of all tensors in them."""
    return {
        str(path.relative_to(folder)): digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and is_result(path.relative_to(folder))
    }


def is_result(name: Path) -> bool:
    """Whether a file is a result; no picture is one, because they show times, too."""
    notes = name.name.endswith(".made-by.json")  # they hold times of files
    if name.name in OF_THE_RUN or notes or "tfevents" in name.name or name.name.startswith("."):
        return False
    if FOLDERS_OF_THE_RUN & set(name.parts) or name.suffix in (".png", ".html", ".log"):
        return False
    return not any(part.endswith(MEANWHILE) for part in name.parts)


def digest(path: Path) -> str:
    """A digest of a file; "damaged" for a checkpoint that cannot be read."""
    if path.suffix != ".pth":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception:  # whatever half a file makes torch raise
        return "damaged"
    found = hashlib.sha256()
    _add(found, "", content)
    return found.hexdigest()


def _add(found: Any, name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _add(found, f"{name}/{key}", item)
