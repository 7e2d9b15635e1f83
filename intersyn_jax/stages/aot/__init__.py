"""Programs compiled ahead of time for TPU pods that are not here: what they hold, send and would take."""
