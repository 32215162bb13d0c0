#!/bin/sh
# A step of a shell pipeline: drop a batch file, wait for its end, hand the answers on.
#
#   examples/pipeline.sh jan.jsonl ~/batches > answers.jsonl
#
# Its exit code is that of `batchd submit --wait`: 0 if every request was answered, 1 if the batch failed or has errors,
# 4 if it took longer than a day. Answers come to standard output as they stand in output.jsonl, the rest to standard error.
set -eu
file=$1
export BATCHD_SPOOL__ROOT="$2"

# A name of its own for each run: a second run of this script must not wait for the first one's results.
name=$(basename "$file" .jsonl)-$(date +%Y%m%d-%H%M%S)-$$

code=0
batchd submit "$file" --name "$name" --window 24h --wait --timeout 24h >&2 || code=$?
if [ -f "$2/outbox/$name/output.jsonl" ]; then cat "$2/outbox/$name/output.jsonl"; fi
exit $code
