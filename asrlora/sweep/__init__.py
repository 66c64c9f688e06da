"""Many trials from one file. Needs no torch."""
