#!/bin/sh
exec bitnet-launch setup_model "$@"
