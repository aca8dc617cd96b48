"""How large a model is, how much memory its training takes, and the settings that follow from both."""
