"""Pages, tables and figures of runs. Needs no torch."""
