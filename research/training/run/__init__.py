"""From the command line to a finished run folder."""
