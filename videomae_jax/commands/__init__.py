"""The `videomae` command line: one module per sub-command, found by its name here."""
