"""What asrlora costs, beside others and by itself: `uv run asrlora bench NAME` runs the module of that name.

Each module has `add_arguments`, which names the function that measures. The package imports none of this.
"""
