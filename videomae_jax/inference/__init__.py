"""Use trained models: run them over videos and windows, resume, write tables."""
