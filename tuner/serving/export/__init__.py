"""Deploy files: files.py writes them; each other file is one engine's words."""
