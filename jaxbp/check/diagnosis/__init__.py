"""What is wrong with a gradient: from wrong numbers to a cause, a place and a sentence."""
