#!/usr/bin/env bash
# Runs a job on GPU machines of a Slurm cluster: one process for each GPU, put back into the queue when its time is over.
#
#   launch/slurm.sh --name=NAME [FLAGS] -- STAGE --config=FILE.py:ARG --workdir=FOLDER
#   launch/slurm.sh --list | --logs --name=NAME [--lines=100] | --delete --name=NAME
#
#   --nodes=1 --gpus=8      machines, and GPUs of each
#   --time=HH:MM:SS         limit of one run (default: that of the partition); the job goes on in the next one
#   --revision=REV          git revision to run; without it, the checkout as it is when the job starts
#   --restarts=10           how often Slurm may start the job again before a failure is final
#   --slurm=--OPTION=VALUE  any option of sbatch (--slurm=--partition=gpu --slurm=--account=lab); may be repeated
#   --dry_run               prints the commands and does nothing
#
# The checkout and the work folder lie on a file system that all machines share. The environment is made by launch/local.sh
# on the first machine; EXTRA and VENV are those of launch/local.sh. jax finds the processes in the variables of Slurm.
set -euo pipefail
shopt -s extglob nullglob

fail() { echo "error: $*" >&2; exit 2; }

# A command as it could be typed, for dry runs.
show() { printf '%q ' "$@" | sed 's/ $//'; echo; }

# Runs a command of Slurm, or only shows it.
act() {
  if ((dry_run)); then show "$@"; return; fi
  command -v "$1" >/dev/null || fail "$1 is not here: run this on a machine of a Slurm cluster"
  "$@"
}

matches() { [[ $2 =~ ^($3)$ ]] || fail "--$1=$2 is not of the form of $4"; }

main() {
  local action=launch name='' nodes=1 gpus=8 time='' revision='' restarts=10 lines=100 argument
  local -a options=()
  dry_run=0
  while (($#)); do
    argument=$1
    shift
    case $argument in
      --) break ;;
      --list | --logs | --delete) action=${argument#--} ;;
      --dry_run) dry_run=1 ;;
      --name=* | --nodes=* | --gpus=* | --time=* | --revision=* | --restarts=* | --lines=*)
        local flag=${argument%%=*}
        printf -v "${flag#--}" %s "${argument#*=}" ;;
      --slurm=--*) options+=("${argument#--slurm=}") ;;
      -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; return ;;
      *) fail "no flag $argument; launch/slurm.sh --help lists all, and the command stands behind --" ;;
    esac
  done
  local count='[1-9][0-9]{0,5}'
  matches nodes "$nodes" "$count" 2
  matches gpus "$gpus" "$count" 8
  matches lines "$lines" "$count" 100
  matches restarts "$restarts" '[0-9]{1,6}' 10
  [[ -z $time ]] || matches time "$time" '([0-9]+-)?[0-9]+(:[0-9]+){0,2}' 04:00:00
  [[ -z $name ]] || matches name "$name" '[a-z]([-a-z0-9]{0,37}[a-z0-9])?' 'vila-u-grpo (a-z, 0-9, -)'
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  local logs=$PWD/runs/launch
  [[ $action == list || -n $name ]] || fail '--name is missing: name the job, e.g. --name=vila-u-grpo'
  case $action in
    list) act squeue --me --noheader '--format=%i %j %T %M %l %D %R' | sed -n 's/^\([^ ]* \)intersyn-/\1/p;/^squeue/p' ;;
    logs) show_logs "$logs" "$name" "$lines" ;;
    delete) act scancel --me "--name=intersyn-$name" ;;
    launch) submit "$@" ;;
  esac
}

show_logs() {
  local -a found=("$1/$2"-+([0-9]).log)
  ((${#found[@]})) || fail "no log of $2 in $1"
  # Numbers of jobs grow: the last one is the newest.
  act tail -n "$3" -- "$(printf '%s\n' "${found[@]}" | sort -V | tail -n 1)"
}

submit() {
  [[ $# -gt 0 && $1 != -* ]] || fail 'the command is missing: end with -- STAGE --config=FILE.py:ARG --workdir=FOLDER'
  local argument
  for argument; do
    [[ $argument != *[[:cntrl:]]* ]] || fail "the argument $(printf %q "$argument") holds a line break or control character"
  done
  local folder=$PWD
  local -a command=("$@")
  if [[ -n $revision ]]; then
    local commit
    commit=$(git rev-parse --verify --quiet --end-of-options "$revision^{commit}") ||
      fail "--revision=$revision is no commit of this checkout; git log --oneline lists some"
    folder=$logs/source-$commit
    # Another folder is the current one then, and a relative work folder would lie in it.
    local i
    for ((i = 0; i < ${#command[@]}; i++)); do
      case ${command[i]} in
        --workdir=/* | --workdir=*://*) ;;
        --workdir=*) command[i]=--workdir=$PWD/${command[i]#--workdir=} ;;
        --workdir) fail 'write --workdir=FOLDER, with the sign of equality, where --revision is given' ;;
      esac
    done
    if ((dry_run)); then show git worktree add --detach "$folder" "$commit"
    elif [[ ! -d $folder ]]; then
      git worktree add --quiet --detach "$folder" "$commit" || fail "git worktree add $folder failed"
    fi
  fi
  ((dry_run)) || mkdir -p "$logs"
  # USR1 comes two minutes before the time is over. sbatch runs a copy of this file, which therefore is told where home is.
  act sbatch "--job-name=intersyn-$name" "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" \
    ${time:+"--time=$time"} --requeue --open-mode=append --signal=B:USR1@120 "--output=$logs/$name-%j.log" \
    "--chdir=$folder" "${options[@]}" launch/slurm.sh --inside "$PWD" "$restarts" -- "${command[@]}"
}

# What the first machine does: the environment, then one process for each GPU. SIGTERM (preemption) and USR1 (the time is
# nearly over) are passed on as SIGTERM, after which a checkpoint is written and the job goes back into the queue.
inside() {
  local home=$1 restarts=$2 code=143 pid='' signalled=0
  shift 3
  trap 'signalled=1; [[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null || :' TERM USR1
  VENV=${VENV:-$home/.venv}
  export VENV GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
  (cd "$home" && launch/local.sh install) || exit
  if ((!signalled)); then
    echo "run $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}: $(show "$@")"
    # Every process sees all GPUs of its machine, and jax gives each the one of its number there.
    srun --kill-on-bad-exit=1 --gpu-bind=none "$VENV/bin/python" -m intersyn_jax "$@" &
    pid=$!
    # `wait` ends at each signal as well as at the end of srun.
    while :; do
      code=0
      wait "$pid" || code=$?
      kill -0 "$pid" 2>/dev/null || break
    done
  fi
  if ((signalled || code == 143)); then requeue 'the job was ended before it was complete'
  elif ((code != 0 && code != 2 && ${SLURM_RESTART_COUNT:-0} < restarts)); then requeue "the job failed with code $code"
  fi
  exit "$code"
}

# Puts the job back into the queue, unless it was cancelled: Slurm would start that one again, too.
requeue() {
  local state
  state=$(squeue --noheader "--jobs=$SLURM_JOB_ID" --format=%T 2>/dev/null) || state=''
  echo "$1; Slurm calls it ${state:-gone}"
  if [[ $state == RUNNING ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
}

if [[ ${1:-} == --inside ]]; then
  shift
  inside "$@"
else
  main "$@"
fi
