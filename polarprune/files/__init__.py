"""Reading files that somebody else may have written; writing files that are whole or not there."""
