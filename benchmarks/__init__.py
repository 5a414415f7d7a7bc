"""Benchmarks of causerie against the raw engine, its own options, and other servers.

Each file is a program (``python -m benchmarks.serve --help``) that prints tables for people and, as its last
line, one JSON object for machines. ``python -m benchmarks`` runs the lot.
"""
