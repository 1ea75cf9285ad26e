"""The command line, one file a command: arguments in, a typed call, a result shown."""
