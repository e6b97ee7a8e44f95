#!/bin/sh
# Train into an output folder, or go on with the run that was interrupted there: what a job that is tried again has to do.
#
# A further attempt runs in a container with a new home folder. It recognises the run as its own by CPGAN_OWNER_KEY, which all files in
# cluster/ set; without it, where data, tracking and checkpoints are would not be taken from the run's folder.
#
#     cluster/train_or_resume.sh OUTPUT [PRESET] [--any.config.field VALUE ...]
#
# The flags count both times: they say where data, cluster and tracking store are, also where this user's key (CPGAN_OWNER_KEY, or the
# file in his home folder) is not at hand, by which a run folder is known as his own.
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
