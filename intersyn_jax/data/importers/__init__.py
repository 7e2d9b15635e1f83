"""Readers of published data sets: rows in, conversations out, what cannot be used listed with its reason."""
