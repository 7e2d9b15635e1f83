"""Public checkpoint families: one file each; `table.py` lists them, `family.py` says what a family is."""
