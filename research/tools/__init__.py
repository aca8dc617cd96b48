"""What a policy may call."""
