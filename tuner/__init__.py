"""The search: study, measurement, score, recommendation."""
