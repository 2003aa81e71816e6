"""What users send: traces, the recorder, the replay."""
