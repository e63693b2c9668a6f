"""The command line `csengine`: one module per subcommand."""

from csengine.cli.app import main

__all__ = ["main"]
