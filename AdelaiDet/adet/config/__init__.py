"""Configuration of adet: Detectron2's keys and `MODEL.SOLOV2`."""

from .defaults import add_solov2_config, get_cfg

__all__ = ["add_solov2_config", "get_cfg"]
