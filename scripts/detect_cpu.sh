#!/bin/sh
exec bitnet-launch doctor "$@"
