"""One module a command. The module's name is the command's, its function `command` is what runs."""
