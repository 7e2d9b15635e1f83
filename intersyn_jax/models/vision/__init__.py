"""The image tokenizers and the image encoder of the public checkpoint families; `codec.py` is the door."""
