"""What may have been written in the place of a derivative, as arrays made of the recorded values."""
