#!/bin/sh
exec bitnet-launch --check "$@"
