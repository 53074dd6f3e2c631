"""The command line: `featurestore COMMAND …`.

    frame      main: arguments, errors in one line, signals, exit codes
    exits      every exit code, in one table
    progress   the bar with the rate
    one module per command, named in COMMANDS

A command is a module with `add_arguments(parser)`, which says what it takes, and `run(arguments) -> Exit`.
Only the module of the command that was asked for is imported, and it imports what is heavy (pyarrow, numpy,
grpc, the engine) inside `run`: so `--help` is instant, and an installation without the server's dependencies
runs the client's commands. To add a command, write its module and name it here.
"""

from featurestore.cli.frame import Command, run_command_line

COMMANDS = (
    Command("check", "featurestore.cli.check", "say what a schema file declares, or what is wrong with it"),
    Command(
        "replay",
        "featurestore.cli.replay",
        "make a training set: events in, the vectors Observe would return out",
    ),
    Command("inspect", "featurestore.cli.inspect", "say what a store that is not open is and holds"),
    Command(
        "verify", "featurestore.cli.verify", "read all of a store that is not open, and name what is wrong"
    ),
    Command("restore", "featurestore.cli.restore", "make a store of a backup"),
)


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the code the process should exit with."""
    return run_command_line(COMMANDS, argv)


__all__ = ["COMMANDS", "main"]
