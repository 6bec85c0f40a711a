"""The recipes: `--config=NAME:ARGUMENTS` reads NAME.py of this folder."""
