"""Datasets: record formats, importers, builders, the input pipeline, and the Storyworld corpus."""
