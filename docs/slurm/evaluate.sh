#!/usr/bin/env bash
#SBATCH --job-name=fastpure
#SBATCH --array=1-8
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=slurm-%A_%a.log
#
# One evaluation as an array of jobs: task i of n computes shard i/n into runs/NAME/i.sqlite.
#
#   sbatch docs/slurm/evaluate.sh NAME [options of fastpure evaluate]
#   sbatch --dependency=afterok:JOB docs/slurm/merge.sh NAME
#
# Two minutes before its time is over, or when it is preempted, a task is told to stop. It has then written every
# finished block, asks to be queued again, and continues there. Give all tasks one --batch-size.
set -euo pipefail

if [ $# -lt 1 ] || [[ $1 == -* ]]; then
  echo "evaluate.sh: give the run a name first: sbatch docs/slurm/evaluate.sh NAME [options of fastpure evaluate]" >&2
  exit 2
fi
name=$1
shift
: "${SLURM_ARRAY_TASK_ID:?submit this with sbatch --array=1-N}"
# Tasks need not be numbered from 1 (--array=0-7), nor one by one (--array=0-14:2).
shard=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / ${SLURM_ARRAY_TASK_STEP:-1} + 1))
shards=$(((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN) / ${SLURM_ARRAY_TASK_STEP:-1} + 1))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

mkdir -p "runs/$name"
fastpure evaluate "$@" --shard "$shard/$shards" --out "runs/$name/$shard.sqlite" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' TERM INT
status=0
wait "$run" || status=$?
if kill -0 "$run" 2>/dev/null; then  # wait came back because of the signal: now for the end of the block
  status=0
  wait "$run" || status=$?
fi
if [ "$status" = 130 ]; then  # stopped in good order, with images left
  echo "evaluate.sh: shard $shard/$shards is not finished and asks to be queued again"
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
