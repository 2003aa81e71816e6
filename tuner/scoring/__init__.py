"""What the answers are worth: metrics, SLOs, quality, doubts."""
