"""Fields of a checkpoint's config.json, read with suspicion: a wrong kind or an unknown variant is one clear line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intersyn_jax.errors import UserError


class Fields:
  """One object of config.json. A field that is missing or null has its default; without a default it must be there."""

  def __init__(self, given: Mapping[str, Any], where: str = ''):
    self.given, self.where = given, where

  def section(self, name: str) -> Fields:
    """The object in a field; empty where it is missing."""
    value = self.given.get(name)
    if value is not None and not isinstance(value, Mapping):
      raise self._error(name, value, 'an object')
    return Fields(value or {}, f'{self.where}{name}.')

  def size(self, name: str, default: int | None = None) -> int:
    """A positive whole number."""
    value = self._value(name, default)
    if type(value) is not int or value < 1:
      raise self._error(name, value, 'a positive whole number')
    return value

  def sizes(self, name: str, default: tuple[int, ...] | None = None, *, count: int = 0, least: int = 1) -> tuple[int, ...]:
    """A list of whole numbers, none below `least`; of `count` of them if that is given."""
    value = self._value(name, default)
    if not isinstance(value, list | tuple) or any(type(n) is not int or n < least for n in value) or (
        count and len(value) != count):
      raise self._error(name, value, f'a list of {count or "some"} whole numbers from {least} up')
    return tuple(value)

  def number(self, name: str, default: float | None = None) -> float:
    """A positive number."""
    value = self._value(name, default)
    if type(value) not in (int, float) or not 0 < value < float('inf'):
      raise self._error(name, value, 'a positive number')
    return value

  def flag(self, name: str, default: bool) -> bool:
    """True or false."""
    value = self._value(name, default)
    if type(value) is not bool:
      raise self._error(name, value, 'true or false')
    return value

  def choice(self, name: str, known: Mapping[str, Any], default: str) -> str:
    """A key of `known`."""
    value = self._value(name, default)
    if not isinstance(value, str) or value not in known:
      raise self._error(name, value, f'one of {", ".join(known)}')
    return value

  def only(self, name: str, value: Any) -> None:
    """Refuses any other value: a variant that no published checkpoint has, or a number that others fix."""
    given = self._value(name, value)
    if given != value:
      raise self._error(name, given, repr(value))

  def _value(self, name: str, default: Any) -> Any:
    value = self.given.get(name)
    return default if value is None else value

  def _error(self, name: str, value: Any, wanted: str) -> UserError:
    return UserError(f'config.json: {self.where}{name} is {str(value)[:80]!r}; it must be {wanted}')
