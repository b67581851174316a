#!/bin/sh
# Events come as lines on standard input; a verdict for each, `ok` or `error WHY`, leaves on descriptor 3.
while IFS= read -r event; do
  if printf '%s\n' "$event" >> notes.jsonl; then
    echo ok >&3
  else
    echo "error cannot write notes.jsonl" >&3
  fi
done
