"""Attention over the paged cache; reference.py is the torch specification."""
