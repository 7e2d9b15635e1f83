"""Stands in for xpk (flags of version 1.16) with the cluster behind it, and for docker."""

import argparse
import pathlib
import re
import signal
import subprocess
import sys

from common import WORLD, Flags, end, home, planned, read, record, until, write

HEADER = 'Jobset Name   Created Time   Priority   TPU/GPU VMs Needed   TPU/GPU VMs Running/Ran   TPU/GPU VMs Done   Status'
VARIABLES = {'HOME': '/root', 'JOBSET_NAME': 'secret'}
"""What the container has; Kubernetes puts it into commands."""
MANIFEST = """echo XPK Start: $(date);
_sigterm() (kill -SIGTERM $! 2>/dev/null;);
trap _sigterm SIGTERM;
({command}) & PID=$!;
while kill -0 $PID 2>/dev/null;
    do sleep 0.1;
done;
wait $PID;
EXIT_CODE=$?;
echo EXIT_CODE=$EXIT_CODE;
exit $EXIT_CODE
"""


def xpk_name(text):
  if not re.fullmatch('[a-z]([-a-z0-9]*[a-z0-9])?', text) or len(text) > 40:
    raise argparse.ArgumentTypeError('Name must be less than 40 characters')
  return text


def xpk(arguments):
  command = ' '.join(arguments[:2])
  record(command=command, arguments=arguments)
  flags = Flags(f'xpk {command}', '{name}: error: {message}')
  flags.add_argument('--cluster', type=xpk_name, required=True)
  for flag in ('--zone', '--project'):
    flags.add_argument(flag)
  jobs = read('jobs.json', {})
  print('[XPK] Starting xpk v1.16.0', flush=True)
  if command == 'workload list':
    for flag in ('--filter-by-job', '--wait-for-job-completion'):
      flags.add_argument(flag)
    args = flags.parse_args(arguments[2:])
    planned('workload list')
    code = read('plan.json', {}).get('waited', 0)
    if args.wait_for_job_completion and code:
      print(f'[XPK] Wait for job completion returned ERROR {code}\n[XPK] XPK failed, error code {code}')
      sys.exit(code)
    print(f'[XPK] Workload List Output:\n{HEADER}')
    for job in jobs:
      if (args.filter_by_job or '') in job:
        print(f'{job}   2026-11-25T10:00:00Z   medium   4   4   <none>   Admitted')
  elif command == 'workload delete':
    flags.add_argument('--workload', type=xpk_name, required=True)  # the real one would delete all there is without it
    args = flags.parse_args(arguments[2:])
    planned('workload delete')
    if jobs.pop(args.workload, None) is None:
      print(f'Error from server (NotFound): jobsets.jobset.x-k8s.io "{args.workload}" not found', file=sys.stderr)
      end('[XPK] Delete Workload request returned ERROR 1\n[XPK] XPK failed, error code 1')
    write('jobs.json', jobs)
  else:
    created(flags, arguments, jobs)
  print('[XPK] Exiting XPK cleanly')


def created(flags, arguments, jobs):
  flags.add_argument('--workload', type=xpk_name, required=True)
  flags.add_argument('--command', required=True)
  flags.add_argument('--tpu-type', choices=('v5litepod-16', 'v5p-128', 'v6e-16'), required=True)
  flags.add_argument('--num-slices', type=int, default=1)
  flags.add_argument('--priority', choices=('very-low', 'low', 'medium', 'high', 'very-high'))
  flags.add_argument('--storage', action='append')
  flags.add_argument('--spot', action='store_true')
  for flag in ('--docker-image', '--max-restarts', '--restart-on-exit-codes', '--termination-grace-period-seconds'):
    flags.add_argument(flag)
  args = flags.parse_args(arguments[2:])
  planned('workload create')
  if args.workload in jobs:
    input(f'[XPK] {args.workload} already exists, do you want to overwrite it? (y/N): ')
  if not all(c.isprintable() for c in args.command):
    end('error: error parsing manifest.yaml: error converting YAML to JSON: yaml: line 60: could not find expected ":"')
  write('jobs.json', {**jobs, args.workload: vars(args)})
  # Kubernetes reads the command before bash does: $$ is a dollar sign, $(NAME) a variable of the container if it has one.
  script = MANIFEST.replace('{command}', args.command)
  script = re.sub(r'\$\$|\$\(([A-Za-z_]+)\)', lambda m: '$' if m[0] == '$$' else VARIABLES.get(m[1], m[0]), script)
  pod = home(0, args.workload, 0)
  pod.mkdir(parents=True)
  environment = {'PATH': f'{WORLD / "machine-bin"}:/usr/bin:/bin', 'FAKE_WORLD': str(WORLD), 'FAKE_MACHINE': str(pod)}
  with (pod / 'log').open('w') as log:
    running = subprocess.Popen(['bash', '-c', script], cwd=pod, env=environment, stdout=log, stderr=log)
    if read('plan.json', {}).get('job') == ['hang']:
      until((pod / 'hangs').exists)
      running.send_signal(signal.SIGTERM)
    write('pod.json', running.wait())


def docker(arguments):
  command = arguments[0]
  flags = Flags(f'docker {command}', 'unknown flag: {message}')
  if command == 'build':
    for flag in ('--platform', '--build-arg', '--tag', '--file'):
      flags.add_argument(flag)
  flags.add_argument('what')
  args = flags.parse_args(arguments[1:])
  files = {str(p.relative_to(args.what)): p.read_text(errors='replace') for p in sorted(pathlib.Path(args.what).rglob('*'))
           if p.is_file()} if command == 'build' else {}
  record(command=command, arguments=arguments, files=files)
  planned(f'docker {command}')
