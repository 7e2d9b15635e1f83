"""How a picture of any size becomes the square that a family's encoder reads. Each family did it in its own way.

A policy is a function of a picture (RGB) and the side in pixels; `data.fit` names the same ones for pictures that are imported.
"""

from __future__ import annotations

from intersyn_jax.data.images import FITS, Fit

Resize = Fit

CHAMELEON: Resize = FITS['crop']
"""Of Chameleon's published image tokenizer; Anole and Liquid use the same."""

JANUS: Resize = FITS['crop_bicubic']
"""Of pictures to generate, as the Janus papers describe the training data; the code was not published."""

JANUS_QUESTION: Resize = FITS['pad_bicubic']
"""Of pictures to understand: Janus's image processor."""

EMU3: Resize = FITS['crop_bicubic']
"""Emu3 keeps the shape of a picture and scales its area (bicubic); an image block has one size here, so the rest is cropped."""

VILA_U: Resize = FITS['top_bicubic']
"""Of pictures to generate. VILA-U squashes pictures to understand into the square instead; square pictures fare alike."""
