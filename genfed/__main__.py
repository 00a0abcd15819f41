"""`python -m genfed` is the `genfed` command."""

from genfed.cli.main import main

main()
