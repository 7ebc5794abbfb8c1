#!/usr/bin/env bash
# What the image does with its arguments:
#   none, or options only          train through the elastic launcher (default: --config configs/digits.yaml)
#   a command of gfgw and its own  run it (train is then a single process)
#   anything else                  run it as a program
# Every branch ends in exec, so signals reach the program and its exit code is the container's.
#
# Environment, besides that of launch/elastic.sh:
#   METRICS_PORT   port of metrics and health on the container's loopback; 0 is off     [9100]
#                  --telemetry.prometheus-port wins, where it is given. The health check asks there, at
#                  --telemetry.prometheus-address if that is an option; it reads no file of settings.
set -euo pipefail

case ${1:-} in
    "") set -- --config configs/digits.yaml ;;
    -*) ;;
    train | pack | sample | evaluate | export | inspect | doctor) exec gfgw "$@" ;;
    *) exec "$@" ;;
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
# For docker/healthcheck.py; where /tmp cannot be written it takes METRICS_PORT.
{ printf '%s %s\n' "$port" "$address" >/tmp/gfgw-metrics-port; } 2>/dev/null || true
exec launch/elastic.sh "$@"
