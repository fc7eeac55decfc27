"""Gradients written by hand, right and wrong: what the checker is measured on."""
