"""The command line: __main__.py lists the commands; each file holds those about one thing."""
