#!/bin/bash
# The same program on several machines, started by Accelerate. On each machine:
#
#     NODE_RANK=0 MASTER_ADDR=host0 examples/launch/accelerate.sh train.py --its-options
#     NODE_RANK=1 MASTER_ADDR=host0 examples/launch/accelerate.sh train.py --its-options
#
# Needed:
#   MASTER_ADDR     a name or address of machine 0 that all machines reach
#   NODE_RANK       0 on that machine, 1, 2, ... on the others
# With a default:
#   CONFIG          accelerate_two_nodes.yaml: num_machines, and num_processes on all machines together
#   MASTER_PORT     29500; free on machine 0 and open in firewalls, as must be the ports that gloo and NCCL choose
#   OMP_NUM_THREADS 1; more where a worker has more cores
# If machines have several networks, on each machine its own name of the interface between them (`ip address`):
#   GLOO_SOCKET_IFNAME   without GPUs
#   NCCL_SOCKET_IFNAME   with GPUs
# Set by Accelerate, not by you: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE.
set -eu
: "${MASTER_ADDR:?the address of machine 0}" "${NODE_RANK:?the number of this machine, from 0}"

exec accelerate launch \
    --config_file "${CONFIG:-$(dirname "$0")/accelerate_two_nodes.yaml}" --machine_rank "$NODE_RANK" \
    --main_process_ip "$MASTER_ADDR" --main_process_port "${MASTER_PORT:-29500}" \
    "$@"
