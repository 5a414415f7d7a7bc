"""``python -m causerie`` is the ``causerie`` command."""

from causerie.cli.main import main

main()
