"""`python -m genfed` is the `genfed` command."""

from genfed.app.cli import main

main()
