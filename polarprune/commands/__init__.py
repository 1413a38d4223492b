"""The verbs of the command line: parse, call one library function, print."""
