#!/usr/bin/env bash
# A run on machines that Slurm hands out: Ray's head, learner and replay on the first node, actors
# on the others.
#
# How far this was tried: no Slurm has run it. tests/cluster/test_slurm.py runs its shell with
# stand-ins for srun, scontrol, getent, ray and python: starting, going on, the warning, the
# requeue, the token and the clearing up. Not tried: real nodes, their GPUs and network, Slurm's
# own signals, limits and preemption, and Ray under all of these.
#
#   sbatch docs/cluster/slurm.sh runs/first --preset apex --actors 64
#
# in the repository's root, which lies on a disk that all nodes share, as the Python environment
# does; activate that first, for sbatch passes on the shell's settings. Two minutes before the time
# is up Slurm sends USR1: the run saves and the job queues itself again. Then, and whenever it is
# submitted anew, it goes on where its folder holds a checkpoint.
#
# A preempted job is warned like this only where Slurm has PreemptParameters=send_user_signal.
# Elsewhere it gets TERM at best: the run saves if Slurm's GraceTime lets it, and Slurm requeues
# it.
#
#SBATCH --job-name=troop
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=1
# Slurm gives all nodes of a job the same, so those of the actors have a GPU that idles.
#SBATCH --exclusive
# Exclusive, since a node has one of Ray's ports and one /tmp/ray, and `ray stop` ends every Ray
# there.
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [[ $# -eq 0 || $1 == -* || ! -f launch.py ]]; then
  echo "usage, in the repository's root: sbatch docs/cluster/slurm.sh RUN_DIR [launch.py's flags]" >&2
  exit 2
fi
run_dir=$1
shift

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
if ((${#nodes[@]} < 2)); then
  echo "slurm.sh: must have 2 nodes or more; on one, python launch.py does without this" >&2
  exit 2
fi
cpus=$SLURM_CPUS_PER_TASK
others=$(IFS=, && echo "${nodes[*]:1}")
job_dir=$PWD/slurm-$SLURM_JOB_ID
port=6379

warning=""     # the first signal that came
driver=""      # the process of launch.py
actor_hosts="" # the process of srun

pass_on() {
  # Only the first: launch.py takes another one for the wish to end without saving.
  # `return` alone would return what the signal made of `wait`, and end the script.
  if [[ -n $warning ]]; then return 0; fi
  warning=$1
  if [[ -n $driver ]]; then kill -s "$warning" "$driver" 2> /dev/null || true; fi
}

clear_up() {
  trap '' USR1 TERM
  if [[ -n $driver ]]; then kill "$driver" 2> /dev/null || true; fi
  if [[ -n $actor_hosts ]]; then kill "$actor_hosts" 2> /dev/null || true; fi
  ray stop > /dev/null 2>&1 || true
  wait
  rm -f "$job_dir/auth_token"
  rmdir "$job_dir" 2> /dev/null || true
}

trap clear_up EXIT
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

# Only who knows the token may speak to Ray. It is passed on as a file: everybody sees command
# lines, and Slurm hands on environments.
(
  umask 077
  mkdir -p "$job_dir"
  rm -f "$job_dir/auth_token"
  head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$job_dir/auth_token"
)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$job_dir/auth_token RAY_USAGE_STATS_ENABLED=0

# How another node sees the first one: at home its name may mean 127.0.1.1.
address=""
read -r address _ < <(
  srun --nodes=1 --ntasks=1 --nodelist="${nodes[1]}" getent ahostsv4 "${nodes[0]}"
) || true
if [[ -z $address ]]; then
  echo "slurm.sh: ${nodes[1]} finds no address of ${nodes[0]}" >&2
  exit 1
fi

ulimit -n "$(ulimit -Hn)"
# A site may set it to 1, which would leave the learner one core.
unset OMP_NUM_THREADS
# A host that falls silent is given up after (1 s + 2 s) * 5 = 15 s, not after 65 s.
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=2000
export RAY_health_check_failure_threshold=5
# The names the driver places by (docs/cluster.md).
ray start --head --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1 \
  --num-cpus="$cpus" --object-store-memory=16000000000 --resources='{"learner_host": 1}'
# In the foreground of its step, which would take a background Ray with it when it ends.
srun --nodes=$((${#nodes[@]} - 1)) --nodelist="$others" --ntasks-per-node=1 \
  --cpus-per-task="$cpus" \
  ray start --block --address="$address:$port" --num-cpus="$cpus" --num-gpus=0 \
  --object-store-memory=2000000000 --resources='{"actor_host": 1}' &
actor_hosts=$!

if compgen -G "$run_dir/checkpoints/checkpoint_*.pt" > /dev/null; then
  echo "slurm.sh: going on with $run_dir by its own settings${*:+; left out: $*}"
  run=(--resume "$run_dir")
else
  run=(--run-dir "$run_dir" "$@")
fi
code=130
if [[ -z $warning ]]; then
  python launch.py --address "$address:$port" "${run[@]}" &
  driver=$!
  # One that came in between found no driver to tell.
  if [[ -n $warning ]]; then kill -s "$warning" "$driver" 2> /dev/null || true; fi
  # A signal ends `wait` too, which says nothing of the driver then.
  while kill -0 "$driver" 2> /dev/null; do wait "$driver" || true; done
  trap '' USR1 TERM
  wait "$driver" || true
  code=0
  wait "$driver" || code=$?
  driver=""
fi

# After TERM Slurm itself knows whether the job was cancelled or shall come again.
if [[ $warning == USR1 ]] && ((code != 0)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
