"""The run directory: what was run, what came out, and why it fell short. Needs no torch."""
