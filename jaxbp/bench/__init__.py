"""How fast the backward passes are, beside their rivals (`README.md`): rows, rivals, tables."""
