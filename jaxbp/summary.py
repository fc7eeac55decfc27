"""An older path to `jaxbp.models.summary`: the table of a network."""

from jaxbp.models.summary import Row, Summary, operations, summary

__all__ = ["Row", "Summary", "operations", "summary"]
