#!/bin/sh
# Trains with one process per core (PROCESSES, 2 unless set). Large allocations are kept in the process:
# returning them to the system costs most of the time.
export MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=268435456 OMP_WAIT_POLICY=passive
exec "${PYTHON:-python3}" -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" "$(dirname "$0")/train.py" "$@"
