#!/usr/bin/env bash
# In place of Python: writes down the arguments and the environment that Python would have been started with.
{
    printf '%s\0' "$#" "$@"
    env -0
} >"$WRITTEN"
