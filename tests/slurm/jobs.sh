#!/usr/bin/env bash
# slurm/selflengthen.sh on a real Slurm of two nodes, with the tiny model: to the end; told to stop, requeued and
# continued; cancelled; a node lost in the middle; a rank killed, or stopped; over its time limit. Whatever happened, the run's
# files must be those of a run that nothing disturbed, byte for byte. Then slurm/scaling.sh.
#
#   jobs.sh PROGRAM       from the project's folder, as root; takes some four minutes
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
if [ "${IN_NAMESPACE:-}" != 1 ]; then
  if ! unshare --net --uts --mount true 2> /dev/null; then
    echo "left out: no network namespaces for us on this machine"
    exit 0
  fi
  # With 127.0.0.1 alone Slurm cannot resolve it.
  exec env IN_NAMESPACE=1 unshare --net bash -c \
    'ip link set lo up && ip address add 127.0.0.2/8 dev lo && exec "$@"' - bash "$0" "$@"
fi

program=$(realpath "$1")
work=$(mktemp -d /tmp/slurm.XXXXXX)
chmod 755 "$work"  # munged wants it
export SLURM_CONF=$work/cluster/slurm.conf
. "$here/tools/mpi_env.sh"
export OMPI_MCA_oob_tcp_if_include=lo OMPI_MCA_btl_tcp_if_include=lo OMP_NUM_THREADS=1
finish() {
  local code=$?
  if [ "$code" -ne 0 ]; then tail -n 20 "$work"/project/*.log "$work"/cluster/log/*.log 2> /dev/null || true; fi
  bash "$here/tests/slurm/cluster.sh" down "$work/cluster" || true
  [ -n "${KEEP:-}" ] || rm -rf "$work"
  exit "$code"
}
trap finish EXIT
bash "$here/tests/slurm/cluster.sh" up "$work/cluster" 2

# A project's folder as a user has it, with the facts of this cluster.
mkdir -p "$work/project/slurm"
cp "$here"/slurm/* "$work/project/slurm"
sed -i "s|^PROGRAM=.*|PROGRAM=$program|; s|^NETWORK_INTERFACE=.*|NETWORK_INTERFACE=lo|" "$work/project/slurm/cluster.env"
cd "$work/project"
options=(--deterministic --model "$here/tests/reference/models/tied" --prompts "$here/input/prompts"
  --seeds "$here/input/seeds")
export CONFIG=$here/tests/run/tiny.cfg

fail() {
  echo "FAILED: $*" >&2
  exit 1
}
# submit NAME [sbatch options...]: starts a job on both nodes whose run folder is NAME; prints its number.
submit() {
  local name=$1
  shift
  OUT=$name sbatch --parsable --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --gpus-per-node=0 \
    --output="$name.log" "$@" slurm/selflengthen.sh "${options[@]}" "${more[@]}"
}
more=()
field() { scontrol -o show job "$1" | grep -o " $2=[^ ]*" | head -n 1 | cut -d = -f 2; }
# until_true SECONDS COMMAND...
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}
has_state() { [[ " $2 " == *" $(field "$1" JobState) "* ]]; }
ends() { until_true 240 has_state "$1" "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL"; }
completes() {
  ends "$1" || fail "job $1 does not end: $(field "$1" JobState)"
  has_state "$1" COMPLETED || fail "job $1 is $(field "$1" JobState), code $(field "$1" ExitCode)"
}
starts() { grep -c '^== .* start ' "$1.log" || true; }
# same RUN EXPECTED: done, and with the files of the other.
same() {
  local file
  "$program" inspect --state "$1" > /dev/null || fail "$1 is not done"
  (cd "$2" && find . -type f ! -name .lock ! -name run.json ! -name metrics.jsonl | sort) > "$work/files"
  [ -s "$work/files" ] || fail "$2 is empty"
  while read -r file; do cmp "$1/$file" "$2/$file" || fail "$1/$file differs"; done < "$work/files"
}

echo "-- what nothing disturbs"
took=$SECONDS
mpirun -n 2 "$program" run --config "$CONFIG" --out expected "${options[@]}" > expected.txt 2>&1
"$program" inspect --state expected > /dev/null || fail "the run outside Slurm is not done"
took=$((SECONDS - took + 1))

echo "-- to the end"
job=$(submit whole)
completes "$job"
[ "$(starts whole)" = 1 ] || fail "started $(starts whole) times"
same whole expected

echo "-- to the end, by mpirun"
sed -i 's/^LAUNCHER=.*/LAUNCHER=mpirun/' slurm/cluster.env
job=$(submit launched)
completes "$job"
same launched expected
sed -i 's/^LAUNCHER=.*/LAUNCHER=auto/' slurm/cluster.env

echo "-- told to stop: requeued, continued"
job=$(submit stopped)
until_true 60 test -e stopped/iter_01/initial.h5 || fail "no stage was finished"
scancel --batch --signal=USR1 "$job"
completes "$job"
[ "$(starts stopped)" = 2 ] || fail "started $(starts stopped) times"
same stopped expected

echo "-- cancelled with a signal, then the same again"
job=$(submit cancelled)
until_true 60 test -e cancelled/iter_01/instructions.h5 || fail "no stage was finished"
scancel "$job"
ends "$job" || fail "a cancelled job does not end"
job=$(submit cancelled)
completes "$job"
same cancelled expected

echo "-- a node lost: the job is begun again when it is back"
job=$(submit lost)
until_true 60 test -e lost/iter_01/initial.h5 || fail "no stage was finished"
scontrol update nodename=n1 state=down reason=test
until_true 30 has_state "$job" PENDING || fail "the job stays $(field "$job" JobState)"
scontrol update nodename=n1 state=resume 2> /dev/null || true  # it may have come back by itself
completes "$job"
[ "$(starts lost)" = 2 ] || fail "started $(starts lost) times"
same lost expected

echo "-- a rank killed: the job fails soon, the next one continues"
job=$(submit killed)
until_true 60 test -e killed/iter_01/initial.h5 || fail "no stage was finished"
pkill -9 -n -f "$program run .*--out killed"
ends "$job" || fail "the job goes on without the rank"
has_state "$job" FAILED || fail "the job is $(field "$job" JobState)"
job=$(submit killed)
completes "$job"
same killed expected

echo "-- a rank that stops: the watch ends the job, the next one continues"
more=(--stall-timeout 5)
job=$(submit stalled)
until_true 60 test -e stalled/iter_01/initial.h5 || fail "no stage was finished"
pkill -STOP -n -f "$program run .*--out stalled"
ends "$job" || fail "the job goes on without the rank"
has_state "$job" FAILED || fail "the job is $(field "$job" JobState)"
grep -q "the job has stalled: no sign of life for 5 s" stalled.log || fail "nothing says that the job has stalled"
more=()
job=$(submit stalled)
completes "$job"
same stalled expected

echo "-- a time limit shorter than the run: requeued until it is done"
# Slurm looks every half minute: the signal comes 15 to 45 s after the start. The run takes some 80 s.
more=(--instructions $((8 * 80 / took)))
job=$(submit limited --time=1 --signal=B:USR1@45)
until_true 300 has_state "$job" "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL" || fail "the job does not end"
completes "$job"
[ "$(starts limited)" -ge 2 ] || fail "was done before its limit"
"$program" inspect --state limited > /dev/null || fail "limited is not done"
"$program" inspect --verify limited > /dev/null || fail "limited is damaged"
echo "-- the scaling study"
job=$(SHAPE=smollm2-135m OUT=scaling.jsonl EACH=2 REPEATS=2 CONTEXT=64 STEP=64 STAGE=8 IO=16 STEPS="1:16 4:16 4:64" \
  ROLLOUT="--input-tokens 16 --output-tokens 24 --max-sequences 8 --kv-memory 64" \
  sbatch --parsable --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --gpus-per-node=0 --output=scaling.log slurm/scaling.sh)
completes "$job"
for row in '"nodes":1,.*"rollout"' '"nodes":2,.*"rollout"' '"nodes":2,.*"train"' '"nodes":2,.*"io"' '"nodes":2,.*"collective"' '"replicas":1024,'; do
  grep -q "$row" scaling.jsonl || fail "the scaling study has no row $row"
done
python3 "$here/tools/plot_scaling.py" scaling.jsonl || fail "the scaling study cannot be read"
echo "Slurm: all passed"
