#!/bin/sh
# Makes a Debian package of this checkout:
#
#     cargo install cargo-deb --locked
#     deploy/deb/build.sh                  # builds the program first
#     deploy/deb/build.sh BINARY           # packs this one; DEB_FLAGS are more flags of `cargo deb`, such as --fast
#
# Manual pages and completions come from the program itself, so it has to run here. Needs cargo-deb, dpkg and gzip. The package lands in
# target/debian. Twice from one commit it is the same, byte for byte: its times are the commit's.
set -eu
cd "$(dirname "$0")/../.."
stage=target/package

if [ $# -gt 0 ]; then
    binary=$1
else
    cargo build --release --locked --bin bitnet-launch
    binary=${CARGO_TARGET_DIR:-target}/release/bitnet-launch
fi
rm -rf "$stage"
mkdir -p "$stage/man" "$stage/completions"
cp "$binary" "$stage/bitnet-launch"
strip "$stage/bitnet-launch"
"$stage/bitnet-launch" man "$stage/man" >/dev/null
gzip -n9 "$stage/man"/*
"$stage/bitnet-launch" completions bash >"$stage/completions/bitnet-launch"
"$stage/bitnet-launch" completions zsh >"$stage/completions/_bitnet-launch"
"$stage/bitnet-launch" completions fish >"$stage/completions/bitnet-launch.fish"
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
    export SOURCE_DATE_EPOCH
fi
version=$("$stage/bitnet-launch" --version | cut -d ' ' -f 2)
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
cat >"$stage/changelog" <<END
bitnet-launch ($version-1) unstable; urgency=medium

  * What changed stands in CHANGELOG.md beside this file.

 -- $maintainer  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
END
cargo deb --no-build --no-strip ${DEB_FLAGS:-}
