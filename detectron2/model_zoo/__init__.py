"""The configs of this repository and of Detectron2's published models, by name."""

from .model_zoo import get, get_checkpoint_url, get_config, get_config_file
