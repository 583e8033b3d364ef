# shellcheck shell=bash
# Functions every host script starts with. components/remote.py puts this file in front of the script it sends.
set -euo pipefail
umask 077
export LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
host_label=$1
task=$2
# shellcheck disable=SC2034 # read by the script that follows
operation=${3:-apply}

# Progress and errors go to stderr: stdout carries only what a script returns.
# Nobody may be listening any more (the run was killed): that must not end the work half-way.
trap '' PIPE
say() { printf '%s: %s: %s\n' "$host_label" "$task" "$*" >&2 || true; }
fail() {
    say "FAILED: $*"
    exit 1
}

# wait_until SECONDS "what is waited for" "usual cause of a long wait" COMMAND...
# A script that defines last_words() has them added when the time is over: what the thing waited for said last.
wait_until() {
    local limit=$1 what=$2 cause=$3 begin=$SECONDS told=$SECONDS
    shift 3
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS - begin >= limit)); then
            ! declare -F last_words >/dev/null || cause+=". $(last_words || true)"
            fail "$what did not happen within $limit s. Usual cause: $cause"
        fi
        if ((SECONDS - told >= 10)); then
            told=$SECONDS
            say "waiting for $what since $((SECONDS - begin)) s (at most $limit s). Usual cause of a long wait: $cause"
        fi
        sleep 0.3
    done
}

# install_packages NAME... : Debian packages, only when one is missing.
install_packages() {
    local missing=() name
    for name in "$@"; do
        [[ $(dpkg-query -W -f='${db:Status-Abbrev}' "$name" 2>/dev/null || true) == ii* ]] || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    # A machine with two roles is worked on by two scripts at once, and apt waits for nobody while it reads its lists.
    exec 9>/run/school-postgres-packages.lock
    flock --timeout 240 9 || fail "another installation of packages on this machine does not end"
    say "installing ${missing[*]}"
    local log
    log=$(mktemp)
    # A run that was killed half-way leaves packages unpacked but not configured.
    dpkg --configure -a >"$log" 2>&1 || true
    if ! { apt-get -q -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 update &&
        apt-get -q -y -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 -o Dpkg::Options::=--force-confold \
            install --no-install-recommends "${missing[@]}"; } >>"$log" 2>&1; then
        tail -n 5 "$log" >&2
        fail "Debian packages could not be installed (${missing[*]}). Is the package mirror reachable from this machine? See network.aptProxy in the stack's configuration."
    fi
    rm -f "$log"
    exec 9>&-
}

# write_file PATH MODE OWNER CONTENT [SERVICE] : SERVICE is stale when the content or the mode was different.
write_file() {
    local path=$1 mode=$2 owner=$3 content=$4 new
    new=$(mktemp "$(dirname "$path")/.XXXXXX")
    printf '%s\n' "$content" >"$new"
    chmod "$mode" "$new"
    chown "$owner" "$new"
    if [[ -f $path ]] && cmp -s "$new" "$path" && [[ $(stat -c '%a %U:%G' "$path") == "${mode#0} $owner" ]]; then
        rm -f "$new"
    else
        [[ -z ${5-} ]] || mark_stale "$5"
        mv -f "$new" "$path"
    fi
}

# A service is stale from the moment its files change until it has loaded them. The mark outlives a killed run, so the
# next one still knows; it does not outlive a reboot, which loads everything.
mark_stale() { : >"/run/school-postgres.$1.stale"; }
is_stale() { [[ -e /run/school-postgres.$1.stale ]]; }
mark_loaded() { rm -f "/run/school-postgres.$1.stale"; }
