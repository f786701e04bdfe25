#!/bin/bash
# The same program on several machines, started by torchrun. On each machine:
#
#     NODE_RANK=0 MASTER_ADDR=host0 examples/launch/torchrun.sh train.py --its-options
#     NODE_RANK=1 MASTER_ADDR=host0 examples/launch/torchrun.sh train.py --its-options
#
# Needed:
#   MASTER_ADDR     a name or address of machine 0 that all machines reach
#   NODE_RANK       0 on that machine, 1, 2, ... on the others
# With a default:
#   NNODES          2; how many machines
#   NPROC_PER_NODE  1; workers on each machine, as many as it has GPUs
#   MASTER_PORT     29500; free on machine 0 and open in firewalls, as must be the ports that gloo and NCCL choose
#   OMP_NUM_THREADS 1; more where a worker has more cores
# If machines have several networks, on each machine its own name of the interface between them (`ip address`):
#   GLOO_SOCKET_IFNAME   without GPUs
#   NCCL_SOCKET_IFNAME   with GPUs
# For --max-restarts the machines must meet in another way: see docs/faults.md.
# Set by torchrun, not by you: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_RANK.
set -eu
: "${MASTER_ADDR:?the address of machine 0}" "${NODE_RANK:?the number of this machine, from 0}"

exec torchrun \
    --nnodes "${NNODES:-2}" --node-rank "$NODE_RANK" --nproc-per-node "${NPROC_PER_NODE:-1}" \
    --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}" \
    "$@"
