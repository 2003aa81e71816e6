"""What others record, turned into our traces: one file a family, importer.py is the door."""
