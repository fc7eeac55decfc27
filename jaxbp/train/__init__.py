"""What surrounds a backward pass: steps and epochs, configs, data, the loop, checkpoints, reports."""
