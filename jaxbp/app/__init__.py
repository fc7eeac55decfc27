"""The application around `train`: configs, data, the loop, checkpoints, reports, run folders."""
