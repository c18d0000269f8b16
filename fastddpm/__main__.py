"""``python -m fastddpm`` is the command line."""

from fastddpm.cli import main

main()
