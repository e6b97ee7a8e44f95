#!/bin/sh
# Train into an output folder, or go on with the run that was interrupted there: what a job that is tried again has to do.
#
#     cluster/train_or_resume.sh OUTPUT [PRESET] [--any.config.field VALUE ...]
set -eu
output=$1
shift
cd "$(dirname "$0")/.."
if [ -f "$output/config.json" ]; then
    exec python jobs/train_celeba.py --resume "$output"
fi
exec python jobs/train_celeba.py "$@" --output "$output"
