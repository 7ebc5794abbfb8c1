#!/usr/bin/env bash
# Trains on one node or many, elastically. The arguments go to `gfgw_prod train`.
#
#   launch/elastic.sh --config configs/digits.yaml            on this machine, with all visible GPUs
#   NNODES=2:4 RDZV_ENDPOINT=node0:29400 launch/elastic.sh --config configs/cifar10.yaml       on every node, the same
#
# Exit codes (docs/exit-codes.md):
#   0    finished
#   2    bad configuration or input
#   75   stop signal received, state saved: run the same command again to resume
#   76   no progress: checkpoints cannot be saved, or restarts bring no new one
#   else a crash, and no restarts left
# All nodes of a job exit with the code of the node that ended it. A node that gets a stop signal exits alone.
#
# Environment:
#   NNODES             number of nodes, or MIN:MAX for a job that grows and shrinks            [1]
#                      MAX x NPROC must not exceed train.batch_size / train.cell_size. If a node brings more ranks
#                      than there are cells, the job ends with exit code 2.
#   NPROC              ranks on this node       [its GPUs, of CUDA_VISIBLE_DEVICES if set; none: a rank per core, but
#                      all nodes together 4: every preset has at least 4 cells in a batch]
#   RDZV_ENDPOINT      HOST:PORT of the node that hosts the rendezvous; required unless NNODES=1. If that node is lost,
#                      the others stop and wait RDZV_TIMEOUT for the launcher to be started there again. There is no
#                      fallback to localhost: each node would train by itself.
#   RDZV_ID            name of the job at the rendezvous, equal on all nodes                   [gfgw]
#   RDZV_TIMEOUT       seconds to wait for MIN nodes, or for the rendezvous host               [600]
#   RDZV_LAST_CALL     seconds to wait for more nodes, up to MAX, once MIN have come           [30]
#   LOCAL_ADDR         address at which other nodes reach this one            [its host name; one node: localhost]
#   MAX_RESTARTS       restarts and replacements of this node's ranks, over the whole job, before it fails   [3]
#                      A node that joins, leaves or is lost costs none, as long as one is left.
#   GRACE_SECONDS      seconds between a stop signal and SIGKILL, for all ranks to save        [60]
#   OMP_NUM_THREADS    OpenMP threads per rank                                                 [1]
#                      torch's own threads, the only ones that affect the weights, are the setting run.threads.
#   PYTHON             interpreter  [.venv/bin/python of this repository, or that of the installed package; else python3]
set -euo pipefail

# Nothing has started yet. Once Python runs, the launcher handles signals.
trap 'exit 75' TERM INT HUP QUIT USR1

fail() {
    printf 'elastic.sh: %s\n' "$1" >&2
    exit 2
}

is_count() { # is_count VALUE MINIMUM [MAXIMUM]
    [[ $1 =~ ^[0123456789]{1,9}$ ]] && ((10#$1 >= $2 && 10#$1 <= ${3:-999999999}))
}

count_gpus() { # sets gpus to the number that CUDA shows to a rank; of MIG instances that is one at most
    local listed all split entry entries shown=,
    gpus=0
    listed=$(nvidia-smi -L 2>/dev/null) || true # it may list GPUs and still complain
    all=$(grep -c '^GPU ' <<<"$listed") || return 0
    if [[ ! ${CUDA_VISIBLE_DEVICES+set} ]]; then
        split=$(grep -A 1 '^GPU ' <<<"$listed" | grep -c '^ *MIG ') || true
        gpus=$((all > split ? all - split : 1))
        return
    fi
    IFS=, read -r -a entries <<<"$CUDA_VISIBLE_DEVICES"
    for entry in ${entries[@]+"${entries[@]}"}; do
        entry=${entry//[[:space:]]/}
        case $entry in
            GPU-* | MIG-*) [[ $listed == *"UUID: $entry"* ]] ;;
            [0123456789]*) is_count "$entry" 0 $((all - 1)) ;;
            *) break ;; # ends the list, as -1 does
        esac && [[ $shown != *",$entry,"* ]] ||
            fail "CUDA_VISIBLE_DEVICES must name different GPUs of nvidia-smi -L, not '$CUDA_VISIBLE_DEVICES'"
        shown+=$entry,
        ((gpus += 1))
        [[ $entry != MIG-* ]] || break
    done
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

nnodes=${NNODES:-1}
if ! [[ $nnodes =~ ^[1-9][0-9]{0,5}(:[1-9][0-9]{0,5})?$ ]] || ((${nnodes%:*} > ${nnodes#*:})); then
    fail "NNODES must be a number of nodes or MIN:MAX, such as 2 or 1:4, not '$nnodes'"
fi

if [[ -n ${NPROC:-} ]]; then
    nproc=$NPROC
else
    count_gpus
    nproc=$gpus
    if ((nproc == 0)); then
        cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # that this process may use
        most=$((4 / ${nnodes#*:}))
        nproc=$((cores < most ? cores : most < 1 ? 1 : most))
    fi
fi
is_count "$nproc" 1 1024 || fail "NPROC must be a number of ranks between 1 and 1024, not '$nproc'"

max_restarts=${MAX_RESTARTS:-3}
is_count "$max_restarts" 0 || fail "MAX_RESTARTS must be a whole number of at least 0, not '$max_restarts'"
join_timeout=${RDZV_TIMEOUT:-600}
is_count "$join_timeout" 1 || fail "RDZV_TIMEOUT must be a positive whole number of seconds, not '$join_timeout'"
last_call=${RDZV_LAST_CALL:-30}
is_count "$last_call" 1 || fail "RDZV_LAST_CALL must be a positive whole number of seconds, not '$last_call'"
export GRACE_SECONDS=${GRACE_SECONDS:-60}
is_count "$GRACE_SECONDS" 1 || fail "GRACE_SECONDS must be a positive whole number of seconds, not '$GRACE_SECONDS'"

if [[ $nnodes == 1 || $nnodes == 1:1 ]]; then
    endpoint=localhost:0 # a free port, known only to this job
    job=${RDZV_ID:-gfgw-$$}
    local_addr=${LOCAL_ADDR:-localhost} # a container's own host name may not resolve
else
    endpoint=${RDZV_ENDPOINT:-}
    [[ -n $endpoint ]] || fail "RDZV_ENDPOINT must be HOST:PORT of the rendezvous node when NNODES is '$nnodes'"
    { [[ $endpoint =~ ^[^[:space:]]+:[0123456789]{1,5}$ ]] && is_count "${endpoint##*:}" 1 65535; } ||
        fail "RDZV_ENDPOINT must be HOST:PORT, not '$endpoint'"
    job=${RDZV_ID:-gfgw}
    local_addr=${LOCAL_ADDR:-}
fi

python=${PYTHON:-}
if [[ -z $python ]]; then
    python=python3
    [[ -x $root/.venv/bin/python ]] && python=$root/.venv/bin/python
    [[ $root == */lib/python*/site-packages/gfgw_prod && -x ${root%/lib/python*}/bin/python ]] &&
        python=${root%/lib/python*}/bin/python
fi
{ command -v "$python" >/dev/null && [[ ! -d $python ]]; } || fail "PYTHON must name a Python interpreter, not '$python'; run 'make setup' first"

export GFGW_PROGRAM=${GFGW_PROGRAM-$(printf %q "$0")} # for the line that says how to make the run longer
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
[[ $OMP_NUM_THREADS =~ ^[123456789][0123456789]{0,3}(,[123456789][0123456789]{0,3})*$ ]] ||
    fail "OMP_NUM_THREADS must be a positive number of threads, not '$OMP_NUM_THREADS'"
# This repository's code, or that of PYTHON, whatever lies in the working directory.
export PYTHONSAFEPATH=1
[[ ! -d $root/gfgw_prod ]] || export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$root
# Between here and Python's first lines a signal just kills this process: bash would lose a trapped one in exec.
trap - TERM INT HUP QUIT USR1
# exec: the launcher takes this process id, so it gets its signals; it forwards them and waits for the ranks to save.
exec "$python" -m gfgw_prod.launcher \
    --nnodes "$nnodes" --nproc-per-node "$nproc" --max-restarts "$max_restarts" \
    --rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "$job" \
    --rdzv-conf "join_timeout=$join_timeout,last_call_timeout=$last_call" \
    ${local_addr:+--local-addr "$local_addr"} \
    -m gfgw_prod train "$@"
