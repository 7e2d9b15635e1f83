"""Trees by path: the names that optimizer tables, checkpoints and error messages use."""

from __future__ import annotations

from typing import Any

import jax


def path_of(keys: tuple[Any, ...]) -> str:
  """The path of a leaf, parts joined by '/'; the `value` inside an NNX variable is not a part."""
  if len(keys) > 1 and getattr(keys[-1], 'name', None) == 'value':
    keys = keys[:-1]
  return jax.tree_util.keystr(keys, simple=True, separator='/')


def flat(tree: Any) -> dict[str, Any]:
  """Leaves by path, in tree order. Takes nested dicts, tuples, NNX states and NNX modules."""
  return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflat(like: Any, leaves: dict[str, Any]) -> Any:
  """The inverse of `flat`: a tree built like `like` from leaves by path."""
  return jax.tree_util.tree_map_with_path(lambda keys, _: leaves[path_of(keys)], like)


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
  """Leaves by path as nested dicts, the form in which checkpoints keep them."""
  root: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, name = path.split('/')
    node = root
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return root


def abstract(tree: Any) -> Any:
  """Shapes, types and shardings of a tree of arrays; leaves that are abstract already stay."""
  def one(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None))
  return jax.tree.map(one, tree)
