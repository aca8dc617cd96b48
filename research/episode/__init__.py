"""One episode: protocol, tokens, prompts, trajectory and the loop. Imports nothing else of ours."""
