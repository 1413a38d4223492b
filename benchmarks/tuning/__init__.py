"""How the defaults of one pass were found: candidates on a part of the training images."""
