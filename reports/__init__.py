"""What a person sees; reads stored results only."""
