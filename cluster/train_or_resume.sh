#!/bin/sh
# Train into an output folder, or continue the interrupted run in that folder: a job that is tried again needs this.
#
#     cluster/train_or_resume.sh OUTPUT [PRESET] [--any.config.field VALUE ...]
#
# A further attempt runs in a container with a new home folder. It recognises the run as its own by CPGAN_OWNER_KEY, which all files in
# cluster/ set. The flags are used in every attempt: without that key, data, cluster and tracking store come only from them, not from the
# folder of the run.
set -eu
output=$1
shift
cd "$(dirname "$0")/.."
if [ -f "$output/config.json" ]; then
    case "${1-}" in
        "" | -*) ;;
        *) shift ;;
    esac
    exec python jobs/train_celeba.py --resume "$output" "$@"
fi
exec python jobs/train_celeba.py "$@" --output "$output"
