"""Autodiff's backward pass as a program that can be changed: a mistake is one change of it."""
