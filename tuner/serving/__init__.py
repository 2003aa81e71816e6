"""What answers them: configurations, processes, testbeds, deploy files."""
