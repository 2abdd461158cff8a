#!/bin/sh
# Makes each mounted secret the variable that its file is named after, then becomes the command.
set -eu
for file in /run/secrets/*; do
    if [ -f "$file" ]; then
        export "$(basename "$file")=$(cat "$file")"
    fi
done
exec "$@"
