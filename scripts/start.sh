#!/bin/sh
exec bitnet-launch "$@"
