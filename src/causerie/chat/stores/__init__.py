"""Where responses and conversations are kept: one module for each medium."""
