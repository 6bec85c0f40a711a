"""Other people's checkpoint files: read safely, converted strictly, written back."""
