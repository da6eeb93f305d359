# shellcheck shell=bash
# What the scripts of this directory share on the host: messages, and the
# check for the tools they need. Sourced, never run.

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

default_cache() { printf '%s\n' "${MOOT_VM_CACHE:-/var/cache/moot-vm}"; }

# require_tools INSTALL TOOL=PACKAGE...: every tool is on PATH, or its package
# is installed when INSTALL is 1, or the script ends naming what to install.
require_tools() {
	local install=$1 pair missing=()
	shift
	for pair in "$@"; do
		command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	((${#missing[@]})) || return 0
	if [[ $install != 1 ]]; then
		die "missing packages: ${missing[*]}. Run again with --install, or: apt-get install -y --no-install-recommends ${missing[*]}"
	fi
	say "installing with apt-get: ${missing[*]}"
	apt-get update -qq >&2
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}
