#!/usr/bin/env bash
# What the image does with its arguments:
#   none, or options only          train through the elastic launcher (default: --config configs/digits.yaml)
#   a command of gfgw and its own  run it (train is then a single process)
#   anything else                  run it as a program
# Every branch ends in exec, so signals reach the program and its exit code is the container's.
set -euo pipefail

case ${1:-} in
    "") exec launch/elastic.sh --config configs/digits.yaml ;;
    -*) exec launch/elastic.sh "$@" ;;
    train | evaluate | sample | export | inspect | doctor) exec gfgw "$@" ;;
    *) exec "$@" ;;
esac
