"""The command line: `featurestore COMMAND …`.

    frame      main: arguments, errors in one line, signals, exit codes
    exits      every exit code, in one table
    progress   the bar with the rate
    quantities sizes and durations as people write them
    reaching   what the commands that talk to a server share: its address, TLS, key=value words
    one module per command, named in COMMANDS
    demo_music what `demo --music` prints

A command is a module with `add_arguments(parser)`, which says what it takes, and `run(arguments) -> Exit`.
Only the module of the command that was asked for is imported, and it imports what is heavy (pyarrow, numpy,
grpc, the engine) inside `run`: so `--help` is instant, and an installation without the server's dependencies
runs the client's commands. To add a command, write its module and name it here.
"""

from featurestore.cli.frame import Command, run_command_line

COMMANDS = (
    Command("demo", "featurestore.cli.demo", "see it work: real logs in, the addresses that stand out, out"),
    Command(
        "generate", "featurestore.cli.generate", "write made-up, labelled traffic of a music service to files"
    ),
    Command("serve", "featurestore.cli.serve", "serve a store over gRPC"),
    Command("check", "featurestore.cli.check", "say what a schema file declares, or what is wrong with it"),
    Command(
        "replay",
        "featurestore.cli.replay",
        "make a training set: events in, the vectors Observe would return out",
    ),
    Command("ingest", "featurestore.cli.ingest", "send a file of events to a server, each counted once"),
    Command("get", "featurestore.cli.get", "read vectors: what a service says of some keys"),
    Command("apply", "featurestore.cli.apply", "change the schema of a live store"),
    Command("pins", "featurestore.cli.pins", "the vectors that services are and were, and who asks for them"),
    Command("forget", "featurestore.cli.forget", "delete one key from a live store and all its files"),
    Command(
        "producers",
        "featurestore.cli.producers",
        "who is remembered to have written: list them, forget one, reset one",
    ),
    Command(
        "clock", "featurestore.cli.clock", "what time it is for a live store; believe a clock that leapt"
    ),
    Command("stats", "featurestore.cli.stats", "what a live store holds and has done"),
    Command("checkpoint", "featurestore.cli.checkpoint", "have a live store write its rows to disk now"),
    Command("backup", "featurestore.cli.backup", "copy a live store to a directory on its machine"),
    Command("inspect", "featurestore.cli.inspect", "say what a store that is not open is and holds"),
    Command(
        "verify", "featurestore.cli.verify", "read all of a store that is not open, and name what is wrong"
    ),
    Command("doctor", "featurestore.cli.doctor", "say what this build and machine can do"),
    Command("restore", "featurestore.cli.restore", "make a store of a backup"),
)


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the code the process should exit with."""
    return run_command_line(COMMANDS, argv)


__all__ = ["COMMANDS", "main"]
