"""A ladder of backward passes to write, with a checker that answers in hints."""
