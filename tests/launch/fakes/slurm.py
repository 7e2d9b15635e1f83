"""Stands in for sbatch, srun, scontrol, squeue and scancel; a job runs while sbatch does."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

from common import WORLD, Flags, end, home, planned, read, record, until, write


def sbatch(arguments):
  record(command='sbatch', arguments=arguments)
  flags = Flags('sbatch', "sbatch: {message}")
  for flag in ('--job-name', '--nodes', '--ntasks-per-node', '--gpus-per-node', '--time', '--signal', '--open-mode',
               '--output', '--chdir', '--partition', '--account', '--qos', '--mem', '--constraint', '--cpus-per-task'):
    flags.add_argument(flag)
  for flag in ('--requeue', '--exclusive'):
    flags.add_argument(flag, action='store_true')
  flags.add_argument('script')
  flags.add_argument('rest', nargs=argparse.REMAINDER)
  args = flags.parse_args(arguments)
  planned('sbatch')
  spool = WORLD / 'slurm_script'
  shutil.copy(args.script, spool)
  print('Submitted batch job 77', flush=True)
  environment = {**os.environ, 'SLURM_JOB_ID': '77', 'SLURM_JOB_NODELIST': 'node[1-2]', 'SLURM_JOB_NUM_NODES': args.nodes,
                 'SLURM_NTASKS_PER_NODE': args.ntasks_per_node}
  signals = read('plan.json', {}).get('signals', [])
  for run in range(5):
    write('slurm.json', {'state': 'RUNNING', 'requeued': False})
    if run:
      environment['SLURM_RESTART_COUNT'] = str(run)
    with open(args.output.replace('%j', '77'), 'a' if args.open_mode == 'append' else 'w') as log:
      batch = subprocess.Popen(['bash', str(spool), *args.rest], cwd=args.chdir, env=environment, stdout=log, stderr=log)
      signalled(batch, signals[run] if run < len(signals) else None, int(args.nodes) * int(args.ntasks_per_node))
      write('ended.json', batch.wait())
    if not read('slurm.json', {})['requeued']:
      break
    for hangs in WORLD.glob('machines/*/hangs'):
      hangs.unlink()


def signalled(batch, what, tasks):
  """Ends a run from outside, once all processes are under way."""
  if what is None:
    return
  until(lambda: len(list(WORLD.glob('machines/*/hangs'))) == tasks)
  if what == 'scancel':  # only the processes get SIGTERM, and the job is no longer running
    write('slurm.json', {'state': 'COMPLETING', 'requeued': False})
    for call in (WORLD / 'calls.jsonl').read_text().splitlines():
      call = json.loads(call)
      if call.get('command') == 'job':
        with contextlib.suppress(ProcessLookupError):
          os.kill(call['pid'], signal.SIGTERM)
  else:
    batch.send_signal(getattr(signal, f'SIG{what}'))


def srun(arguments):
  record(command='srun', arguments=arguments)
  flags = Flags('srun', 'srun: {message}')
  for flag in ('--kill-on-bad-exit', '--gpu-bind'):
    flags.add_argument(flag)
  flags.add_argument('program')
  flags.add_argument('rest', nargs=argparse.REMAINDER)
  args = flags.parse_args(arguments)
  each = int(os.environ['SLURM_NTASKS_PER_NODE'])
  tasks = []
  for i in range(int(os.environ['SLURM_JOB_NUM_NODES']) * each):
    machine = home(0, 'node', i)
    machine.mkdir(parents=True, exist_ok=True)
    tasks.append(subprocess.Popen([args.program, *args.rest], env={
        **os.environ, 'FAKE_MACHINE': str(machine), 'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i % each),
        'JOB_PROCID': str(i), 'JOB_LOCALID': str(i % each), 'SLURM_STEP_NODELIST': os.environ['SLURM_JOB_NODELIST']}))
  signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
  codes = [task.wait() for task in tasks]
  sys.exit(max(128 - code if code < 0 else code for code in codes))


def scontrol(arguments):
  record(command='scontrol', arguments=arguments)
  if arguments != ['requeue', '77']:
    end('scontrol: invalid keyword')
  write('slurm.json', {**read('slurm.json', {}), 'requeued': True})


def squeue(arguments):
  record(command='squeue', arguments=arguments)
  flags = Flags('squeue', 'squeue: {message}')
  for flag in ('--jobs', '--format'):
    flags.add_argument(flag)
  for flag in ('--me', '--noheader'):
    flags.add_argument(flag, action='store_true')
  args = flags.parse_args(arguments)
  if args.jobs:
    print(read('slurm.json', {})['state'])
  else:
    print('77 intersyn-vila-u RUNNING 1:00 4:00:00 2 node[1-2]\n78 another RUNNING 1:00 4:00:00 1 node3')


def scancel(arguments):
  record(command='scancel', arguments=arguments)
  flags = Flags('scancel', 'scancel: {message}')
  flags.add_argument('--name')
  flags.add_argument('--me', action='store_true')
  flags.parse_args(arguments)
