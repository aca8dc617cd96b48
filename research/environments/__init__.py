"""What a policy does: each environment plays rows and measures them."""
