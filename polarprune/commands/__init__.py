"""The verbs of the command line: parse, call one library function, print.

A verb's function is as long as its options are many: its parameters are the options.
"""
