"""Weights in and out: safetensors files, PyTorch `state_dict`s and Flax variables."""

from jaxbp.weights.convert import from_flax, from_torch, to_flax, to_torch
from jaxbp.weights.files import load_params, path_name, save_params

__all__ = ["from_flax", "from_torch", "load_params", "path_name", "save_params", "to_flax", "to_torch"]
