#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/pointwssis.sh" 2p --dataset bdd100k "$@"
