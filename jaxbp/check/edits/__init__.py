"""Programs whose derivative is changed and whose values are not: what a backward pass may do."""
