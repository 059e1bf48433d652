#!/usr/bin/env bash
# A run of the whole method as a job that may take longer than its time limit: before the limit the run saves itself,
# the job goes back into the queue, and continues there. From the project's folder:
#
#   sbatch slurm/selflengthen.sh
#   CONFIG=input/llama3.1-8b.cfg OUT=/scratch/llama TP=2 sbatch --nodes=4 slurm/selflengthen.sh
#   CHAIN=1 sbatch slurm/selflengthen.sh        # where requeueing is not allowed: a new job follows each
#
# CONFIG  configuration file                     (input/qwen2-7b.cfg)
# OUT     run folder, on a file system of all nodes   (runs/ and the name of CONFIG)
# TP      ranks that share a replica of the model     (1)
# CHAIN   1: submit a following job instead of requeueing this one
# The last words of the command line of `sbatch slurm/selflengthen.sh ...` are options of `selflengthen run`.
#
# What to ask the queue for: one task a GPU.
#SBATCH --job-name=selflengthen
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Slurm looks every half minute only, and a training step must end: some minutes before the limit.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=selflengthen-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"
. slurm/launch.sh
CONFIG=${CONFIG:-input/qwen2-7b.cfg}
OUT=${OUT:-runs/$(basename "$CONFIG" .cfg)}
TP=${TP:-1}
CHAIN=${CHAIN:-0}

launcher "$SLURM_NTASKS"

echo "== $(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_NTASKS ranks on $SLURM_JOB_NODELIST"
"${launch[@]}" "$PROGRAM" run --config "$CONFIG" --out "$OUT" --tp "$TP" "$@" &
ranks=$!
# The launcher hands the signal on to all ranks; they save and end with 0. A signal ends `wait` early.
trap 'interrupted=1; echo "== $(date "+%F %T") asked to stop"; kill -USR1 $ranks' USR1
while :; do
  interrupted=0 code=0
  wait "$ranks" || code=$?
  [ "$interrupted" = 1 ] || break
done
if [ "$code" -ne 0 ]; then
  echo "== $(date '+%F %T') ended with code $code; what is finished is kept in $OUT"
  exit "$code"
fi

state=0
"$PROGRAM" inspect --state "$OUT" || state=$?
[ "$state" -eq 75 ] || exit "$state"  # done, or no run at all
if [ "$CHAIN" = 1 ]; then
  sbatch --dependency="afterany:$SLURM_JOB_ID" slurm/selflengthen.sh "$@"
else
  scontrol requeue "$SLURM_JOB_ID"  # ends this script
fi
