"""From the command line of a recipe to a finished run folder."""
