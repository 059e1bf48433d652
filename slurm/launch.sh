# shellcheck shell=bash
# Sourced by the job scripts, from the project's folder: the cluster's software and network, and how ranks are started.
. slurm/cluster.env

for module in $MODULES; do module load "$module"; done
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
if [ -n "$NETWORK_INTERFACE" ]; then
  export OMPI_MCA_btl_tcp_if_include=$NETWORK_INTERFACE OMPI_MCA_oob_tcp_if_include=$NETWORK_INTERFACE
  export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE
fi

# launcher RANKS: sets `launch` to the words that start a command on so many ranks, on as few nodes as hold them.
launcher() {
  local ranks=$1 node=${SLURM_NTASKS_PER_NODE:-$SLURM_NTASKS} cpus=${SLURM_CPUS_PER_TASK:-1}
  local nodes=$(((ranks + node - 1) / node))
  # -K1: when a rank dies, the step ends at once, whatever the site's default is.
  if [ "$LAUNCHER" = srun ] || { [ "$LAUNCHER" = auto ] && srun --mpi=list 2>&1 | grep -q pmix; }; then
    launch=(srun -K1 --mpi=pmix --nodes="$nodes" --ntasks="$ranks" --ntasks-per-node="$((ranks < node ? ranks : node))"
      --cpus-per-task="$cpus" --cpu-bind=cores)
  else
    launch=(mpirun -n "$ranks" --map-by "slot:PE=$cpus")
  fi
}
