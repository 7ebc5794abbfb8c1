#!/usr/bin/env bash
# Entry point of the image. By its arguments:
#   none, or options only     train with the elastic launcher (default: --config configs/digits.yaml)
#   a program                 run it
#   anything else             a command of gfgw: run it (train is then a single process)
# Every branch ends in exec: signals reach the program, and its exit code is the container's.
#
# Environment, besides that of launch/elastic.sh:
#   METRICS_PORT   port of metrics and health on the container's loopback; 0 switches them off     [9100]
#                  --telemetry.prometheus-port overrides it. The health check asks this port, at
#                  --telemetry.prometheus-address if that is given; it does not read the --config file.
set -euo pipefail

case ${1:-} in
    "") set -- --config configs/digits.yaml ;;
    -*) ;;
    *)
        [ -n "$(type -P -- "$1")" ] || set -- gfgw "$@" # not a program: a command of gfgw
        exec "$@"
        ;;
esac

port=
address=127.0.0.1
previous=
for argument; do
    case $previous in
        --telemetry.prometheus[-_]port) port=$argument ;;
        --telemetry.prometheus[-_]address) address=$argument ;;
    esac
    case $argument in
        --telemetry.prometheus[-_]port=*) port=${argument#*=} ;;
        --telemetry.prometheus[-_]address=*) address=${argument#*=} ;;
    esac
    previous=$argument
done
if [[ ! $port ]]; then
    port=${METRICS_PORT:-9100}
    set -- "$@" --telemetry.prometheus-port "$port"
fi
# For docker/healthcheck.py, which falls back to METRICS_PORT if /tmp is not writable.
{ printf '%s %s\n' "$port" "$address" >/tmp/gfgw-metrics-port; } 2>/dev/null || true
# A path of the container is no command for whoever started it: the run's last line then only names the setting.
export GFGW_PROGRAM=${GFGW_PROGRAM-}
exec launch/elastic.sh "$@"
