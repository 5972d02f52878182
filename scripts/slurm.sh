#!/usr/bin/env bash
# Trains a config on all GPUs of one or several nodes of a SLURM cluster. Run folder, checkout and data must be on a shared file system.
#   sbatch --nodes=2 --gpus-per-node=8 scripts/slurm.sh my_run.py [arguments of finetune.py]
#SBATCH --job-name=mllm
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
set -euo pipefail
if [ "$#" -eq 0 ]; then
    echo "usage: sbatch --nodes=N --gpus-per-node=G scripts/slurm.sh CONFIG [arguments of finetune.py]" >&2
    exit 2
fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # reads all names: `head` would end scontrol by SIGPIPE, and so this script
# One task per node starts `mllm launch`, which starts one process per GPU. If one node fails, srun ends the others.
exec srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" mllm/pipeline/launch.py \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_backend=c10d --rdzv_endpoint="$first:$((20000 + SLURM_JOB_ID % 20000))" train "$@"
