"""Read the checkpoint files of other projects safely, convert them strictly, and write them."""
