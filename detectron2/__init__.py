"""A lean, independent implementation of the Detectron2 v0.6 API that this project needs."""

__version__ = "0.6"
