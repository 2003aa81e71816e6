"""What may be varied."""
