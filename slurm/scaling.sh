#!/usr/bin/env bash
# A scaling study as one job: rollouts, training, collectives and files on 1, 2, 4, ... ranks up to the whole allocation; and
# beside it what bench simulate makes of the steps measured, up to 1,024 replicas. From the project's folder:
#
#   sbatch --nodes=8 slurm/scaling.sh
#   tools/plot_scaling.py scaling.jsonl --output scaling        # curves with ideal lines: scaling.png, scaling.svg
#
# Weak: every replica has the same work, however many there are. Strong: one work is shared out.
#
# SHAPE    shape of the model, random weights                    (qwen2-7b)
# TP       ranks that share a replica                            (1)
# OUT      gets a JSON line of each measurement, at its end      (scaling.jsonl)
# ROLLOUT  what a request is                                     (--input-tokens 200 --output-tokens 2000)
# EACH     seconds of steady rollouts                            (20)
# STAGE    responses of the shared stage                         (256 a rank of the allocation)
# CONTEXT  tokens of a training step of each replica             (8192)
# STEP     tokens of the shared training step                    (8192 a rank of the allocation)
# REPEATS  training steps                                        (5)
# IO       MiB that each rank writes                             (1024)
# FOLDER   where; the file system of the runs                    (that of OUT)
# STEPS    sequences and context of the steps for bench simulate (1:1024 64:1024 64:4096 256:1024)
# SIMULATE its load; the defaults are that of ROLLOUT, whose prompts are shared in pairs
#          (--lengths lognormal:2266,0.5 --longest 4000 --prompt-tokens 100)
#SBATCH --job-name=scaling
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --output=scaling-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"
. slurm/launch.sh
SHAPE=${SHAPE:-qwen2-7b}
TP=${TP:-1}
OUT=${OUT:-scaling.jsonl}
read -r -a ROLLOUT <<< "${ROLLOUT:---input-tokens 200 --output-tokens 2000}"
EACH=${EACH:-20}
STAGE=${STAGE:-$((256 * SLURM_NTASKS))}
CONTEXT=${CONTEXT:-8192}
STEP=${STEP:-$((8192 * SLURM_NTASKS))}
REPEATS=${REPEATS:-5}
IO=${IO:-1024}
FOLDER=${FOLDER:-$(dirname "$OUT")}
read -r -a STEPS <<< "${STEPS:-1:1024 64:1024 64:4096 256:1024}"
read -r -a SIMULATE <<< "${SIMULATE:---lengths lognormal:2266,0.5 --longest 4000 --prompt-tokens 100}"

failed=0
# measure KIND RANKS BENCH OPTIONS...: a line of the result, with the kind and the nodes in front.
measure() {
  local kind=$1 ranks=$2 line nodes
  shift 2
  nodes=$(((ranks + SLURM_NTASKS_PER_NODE - 1) / SLURM_NTASKS_PER_NODE))
  launcher "$ranks"
  echo "== $(date '+%F %T') $ranks ranks on $nodes nodes, $kind: bench $*"
  if line=$("${launch[@]}" "$PROGRAM" bench "$@" | tail -n 1) && [ "${line:0:1}" = "{" ]; then
    echo "{\"kind\":\"$kind\",\"nodes\":$nodes,\"ranks\":$ranks,${line:1}" >> "$OUT"
  else
    echo "== failed"
    failed=1
  fi
}

for step in "${STEPS[@]}"; do
  measure step "$TP" decode --shape "$SHAPE" --tp "$TP" --batch "${step%:*}" --context "${step#*:}"
done
measure step "$TP" prefill --shape "$SHAPE" --tp "$TP" --context "${STEPS[0]#*:}"
ranks=$TP
while [ "$ranks" -le "$SLURM_NTASKS" ]; do
  replicas=$((ranks / TP))
  model=(--shape "$SHAPE" --tp "$TP")
  measure weak "$ranks" rollout "${model[@]}" "${ROLLOUT[@]}" --seconds "$EACH"
  measure strong "$ranks" rollout "${model[@]}" "${ROLLOUT[@]}" --spread 0.5 --count $((STAGE / replicas))
  measure weak "$ranks" train "${model[@]}" --context "$CONTEXT" --repeats "$REPEATS"
  measure strong "$ranks" train "${model[@]}" --context $((STEP / replicas)) --repeats "$REPEATS"
  measure weak "$ranks" io --folder "$FOLDER" --megabytes "$IO"
  if [ "$ranks" -gt 1 ]; then measure weak "$ranks" collective; fi
  ranks=$((2 * ranks))
done
# The strong rollouts above split the stage beforehand and wait for all: "static" is beside them.
if lines=$("$PROGRAM" bench simulate --steps "$OUT" --count "$STAGE" --straggler-cut 1 "${SIMULATE[@]}"); then
  echo "$lines" >> "$OUT"
else
  failed=1
fi
exit $failed
