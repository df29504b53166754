"""What an artifact lost of the model it was made from: measured, explained and gated."""
