"""The command line of benchmarks: `python -m intersyn_jax.benchmarks NAME [--out=FILE.json] [--CASE ...]`."""

from __future__ import annotations

import importlib
import sys

from intersyn_jax.benchmarks import BENCHMARKS, rows
from intersyn_jax.errors import UserError

USAGE = """python -m intersyn_jax.benchmarks NAME [--out=FILE.json] [--cases=PART,PART] [--runs=5]
                                  [--config=FILE:SIZE --workdir=DIR]

benchmarks
{names}

--cases keeps the cases whose name holds one of the parts; --runs is how often each is measured (the median counts);
--config and --workdir name a finished run, where a benchmark asks for one"""


def main(arguments: list[str]) -> int:
  """Runs one benchmark and gives the exit code: 0, or 2 for a user's mistake and for help that nobody asked for."""
  if not arguments or arguments[0] in ('-h', '--help', 'help') or '--help' in arguments:
    width = max(map(len, BENCHMARKS))
    print(USAGE.format(names='\n'.join(f'  {name:<{width}}  {what}' for name, what in BENCHMARKS.items())))
    return 0 if arguments else 2
  try:
    name, *flags = arguments
    if name not in BENCHMARKS:
      raise UserError(f'there is no benchmark {name!r}; there are {", ".join(BENCHMARKS)}')
    options = rows.options(flags)
    if options.job and name != 'seir':
      raise UserError(f'benchmarks {name} takes no {options.job[0].partition("=")[0]}: seir alone asks for a finished run')
    module = importlib.import_module(f'intersyn_jax.benchmarks.{name}')
    found = []
    for row in module.run(options):
      found.append(row)
      print(rows.line(row), flush=True)
    if not found:
      raise UserError(f'--cases={",".join(options.cases)}: no case has such a name; leave the flag out to see all')
    print(rows.table(found))
    if options.out:
      rows.write(options.out, found)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
