"""What a server makes of hostile input over HTTP."""
