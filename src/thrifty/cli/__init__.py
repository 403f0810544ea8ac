"""The command line: one file a command under `commands/`, imported when it is used."""
