"""The library around a backward pass: a step, an epoch, a sweep, each one compiled call."""
