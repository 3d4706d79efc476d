#!/bin/sh
# Replay every reject and every shipped graph through the fuzz target: replay.sh TARGET FOLDER
exec "$1" "$2"/*.yaml "$2"/parts/*.yaml "$2"/../../../graphs/*.yaml
