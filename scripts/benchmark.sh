#!/bin/sh
exec bitnet-launch bench "$@"
