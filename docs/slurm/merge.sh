#!/usr/bin/env bash
#SBATCH --job-name=fastpure-merge
#SBATCH --time=00:30:00
#SBATCH --output=slurm-%j.log
#
# Puts the shards runs/NAME/*.sqlite together as runs/NAME.sqlite and prints the result:
#
#   sbatch --dependency=afterok:JOB docs/slurm/merge.sh NAME
set -euo pipefail
name=${1:?give the name that evaluate.sh was given}
fastpure merge "runs/$name.sqlite" "runs/$name"/*.sqlite
