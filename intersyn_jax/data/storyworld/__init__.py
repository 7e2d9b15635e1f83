"""Storyworld: a procedural interleaved corpus whose answers can be checked exactly (DESIGN 4).

`world` holds scenes and actions, `render` draws and reads pictures, `language` writes and parses sentences, `topics`
the hierarchy and splits, `story` the conversations, `flaws` known damage, `score` the ground truth, `role_examples`
what the writer's SEIR roles learn from.
"""
