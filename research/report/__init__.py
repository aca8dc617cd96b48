"""What the reports share: pages that need no network, charts and tables."""
