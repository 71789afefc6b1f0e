#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/pointwssis.sh" 10p --dataset bdd100k "$@"
