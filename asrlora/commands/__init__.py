"""The commands of `asrlora`, one module each.

`add_arguments` builds the parser of a command or of its steps and names, as `run`, the function that does the
work and returns the exit code. What is slow to import is imported in these functions, so that --help and
mistakes answer at once.
"""
