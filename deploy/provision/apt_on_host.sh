#!/bin/sh
# Changes packages and their sources on a host.  For any POSIX shell: a bare host has no Python.
#
#   sh apt_on_host.sh ROOT start DIGEST ARGUMENT...   begin a transaction, unless one runs
#   sh apt_on_host.sh ROOT follow SEEN                wait for news of it, some seconds at most
#   sh apt_on_host.sh ROOT seen DIGEST                its end has reached the controller
#   sh apt_on_host.sh ROOT run DIGEST ARGUMENT...     do it; run by systemd as slipway-apt.service
#   sh apt_on_host.sh ROOT replace TEXT TARGET FILE...  sources: TARGET takes the place of FILEs
#   sh apt_on_host.sh ROOT restore TARGET FILE...       sources: the FILEs come back, a -FILE goes
#
# ROOT is "" on hosts; tests pass a directory.  Arguments of a transaction: -iNAME, -iNAME=VERSION
# install, -rNAME remove, -uNAME unhold, -hNAME hold, -xPATTERN unpack installed packages again,
# -pURL proxy, -nHOST,HOST no_proxy, -wSECONDS the longest wait for other programs.
# What is for the controller begins with "@apt ".
set -u
umask 022
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

root=$1 verb=$2
shift 2
work=$root/var/lib/slipway-apt # before there is /var/lib/slipway, which may be a mount
kept=$work/replaced
unit=slipway-apt.service
wait_max=600 # seconds; for locks and for cloud-init together
waited=0

locks="$root/var/lib/dpkg/lock-frontend $root/var/lib/dpkg/lock $root/var/lib/apt/lists/lock
$root/var/cache/apt/archives/lock"

# -- the words for the controller

status() { printf '%s\n' "$*" >>"$work/status"; }

# Ends the transaction with an exit status.  The result is there as a whole or not at all.
end() {
    printf '%s %s\n' "$digest" "$1" >"$work/result.new"
    mv -f "$work/result.new" "$work/result"
    exit "$1"
}

fail() {
    status "$1"
    end 1
}

last_words() {
    grep -E '^(E|W|dpkg|Err|Error!)[: ]' "$work/step" | tail -n 3 | tr -d '\r' | tr '\n' ' '
}

# -- who is in the way

# Prints who holds one of apt's locks; fails if nobody does.  apt and dpkg lock with fcntl(2), which
# /proc/locks lists by the number of the file.
holder() {
    for lock in $locks; do
        [ -e "$lock" ] || continue
        number=$(stat -c %i "$lock") || continue
        for pid in $(awk -v n="$number" '$2 == "POSIX" && $6 ~ ":" n "$" { print $5 }' /proc/locks); do
            for file in "/proc/$pid/fd/"*; do
                if [ "$file" -ef "$lock" ]; then
                    printf '%s holds %s\n' "$(program "$pid")" "${lock#"$root"}"
                    return 0
                fi
            done
        done
    done
    return 1
}

# Prints what the process is: its command and the unit that it belongs to.
program() {
    command=$(tr '\0\n' '  ' <"/proc/$1/cmdline" 2>/dev/null | cut -c 1-80)
    of=$(sed -nE 's#.*/([^/]*[.](service|scope))(/.*)?$#\1#p' "/proc/$1/cgroup" 2>/dev/null |
        head -n 1)
    printf '%s (pid %s%s)' "${command:-a program}" "$1" "${of:+ of $of}" | tr -s ' '
}

# Prints the unit of cloud-init that has not ended; fails if there is none.  It writes the sources of
# packages, and installs some, at the first boot.
cloud_init() {
    of_boot='cloud-init-local cloud-init cloud-init-network cloud-init-main cloud-config cloud-final'
    for name in $of_boot; do set -- "$@" "$name.service"; done
    systemctl show -p Id -p ActiveState -p Job "$@" 2>/dev/null | awk '
        /^Id=/ { id = substr($0, 4) }
        /^ActiveState=activating|^Job=[1-9]/ { busy = 1 }
        /^$/ { if (busy) exit; id = "" }
        END { if (!busy) exit 1; print "cloud-init (" id ") has not ended" }'
}

# Waits until nobody holds a lock of apt.
wait_until_free() {
    told=
    while who=$(holder) || who=$(cloud_init); do
        left=$((wait_max - waited))
        if [ "$left" -le 0 ]; then
            status "waited $wait_max s, and still $who"
            end 75
        fi
        if [ "$who" != "$told" ] || [ $((waited % 30)) -eq 0 ]; then
            status "waiting, because $who; for $left s at most"
            told=$who
        fi
        sleep 1
        waited=$((waited + 1))
    done
}

# Runs a program of apt or dpkg, again where another one was quicker with a lock.
try() {
    while :; do
        wait_until_free
        "$@" >"$work/step" 2>&1 </dev/null
        code=$?
        cat "$work/step" >>"$work/log"
        [ "$code" -eq 0 ] && return 0
        # apt has one exit status for all its errors.
        grep -Eq 'Could not get lock|Unable to (acquire|lock)|locked by another' "$work/step" ||
            return "$code"
        [ "$waited" -lt "$wait_max" ] || return "$code"
        sleep 1
        waited=$((waited + 1))
    done
}

# -- the transaction

apt() { try apt-get -q -y -o DPkg::Lock::Timeout=5 -o APT::Update::Error-Mode=any "$@"; }

# dpkg keeps the configuration files that a host has, and never asks.
keep='-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold'

run() {
    digest=$1
    shift
    install='' remove='' unhold='' hold='' versions='' again=
    export DEBIAN_FRONTEND=noninteractive DEBIAN_PRIORITY=critical UCF_FORCE_CONFFOLD=1
    export NEEDRESTART_MODE=l NEEDRESTART_SUSPEND=1 APT_LISTCHANGES_FRONTEND=none
    for argument; do
        value=${argument#-?}
        case $argument in
        -i*=*) install="$install $value" versions=1 ;;
        -i*) install="$install $value" ;;
        -r*) remove="$remove $value-" ;;
        -u*) unhold="$unhold $value" ;;
        -h*) hold="$hold $value" ;;
        -x*)
            found=$(installed "$value")
            install="$install $found"
            again=1
            ;;
        -p*) export http_proxy="$value" https_proxy="$value" ;;
        -n*) export no_proxy="$value" ;;
        -w*) wait_max=$value ;;
        esac
    done
    mend
    sources=
    case $again$install in
    *[!\ 1]*) ;;
    1*) fail 'no such package is installed' ;;
    esac
    if [ -n "$install$remove" ]; then
        status 'reading the package sources'
        apt update || name_broken_sources
        # Names and options have no blanks: they are split on purpose.
        # shellcheck disable=SC2086
        apt $sources check || apt $sources $keep --no-remove --fix-broken install ||
            fail "packages that depend on each other cannot be completed: $(last_words)"
    fi
    if [ -n "$unhold" ]; then
        # shellcheck disable=SC2086
        try apt-mark unhold $unhold || fail "apt-mark failed: $(last_words)"
    fi
    change
    if [ -n "$hold" ]; then
        # shellcheck disable=SC2086
        try apt-mark hold $hold || fail "apt-mark failed: $(last_words)"
    fi
    end 0
}

# Completes what an interrupted dpkg left.
mend() {
    wait_until_free
    if [ -n "$(ls "$root/var/lib/dpkg/updates" 2>/dev/null)" ] || [ -n "$(dpkg --audit 2>&1)" ]; then
        status 'completing an interrupted dpkg'
    fi
    mend_dkms
    # What it cannot complete, such as a package that is half unpacked, apt does later.
    try dpkg --force-confdef --force-confold --configure -a || :
}

# Prints the names of the installed packages that match.
installed() {
    # shellcheck disable=SC2016
    dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$1" 2>/dev/null | sed -n 's/^installed //p' |
        tr '\n' ' '
}

# Deletes each entry of a driver that DKMS was adding or removing when it was killed.  Without the
# link to its source DKMS neither removes nor builds it, and the package can never be configured.
mend_dkms() {
    for entry in "$root"/var/lib/dkms/nvidia*/[0-9]*; do
        [ -d "$entry" ] || continue
        [ -L "$entry/source" ] || [ -d "$entry/source" ] && continue
        status "removing an unfinished entry of DKMS: ${entry#"$root"}"
        rm -rf "$entry"
    done
}

change() {
    [ -n "$install$remove" ] || return 0
    status "changing packages:$install$remove"
    set -- --no-install-recommends
    [ -n "$remove" ] || set -- "$@" --no-remove
    [ -z "$versions" ] || set -- "$@" --allow-downgrades
    [ -z "$again" ] || set -- "$@" --reinstall
    # shellcheck disable=SC2086
    apt $sources $keep "$@" install $install $remove ||
        fail "apt-get install failed: $(last_words)"
}

# Names each file of sources that is broken, and sets aside those that apt cannot even parse.
#
# Lists that another source has are used by apt all the same.  A file that does not parse, or
# contradicts another one, would stop every program of apt.
name_broken_sources() {
    status 'a package source is broken; reading each by itself'
    rm -rf "$work/usable"
    mkdir -m 0755 "$work/usable"
    folder=$root/etc/apt/sources.list.d
    for file in "$folder"/slipway*.sources "$root/etc/apt/sources.list" \
        "$folder/debian.sources" "$folder/ubuntu.sources" "$folder"/*.list "$folder"/*.sources; do
        [ -s "$file" ] || continue
        name=$(basename "$file")
        [ "$name" = sources.list ] && name=0.list
        [ -e "$work/usable/$name" ] || [ -e "$work/usable/.$name" ] && continue
        if ! read_alone "$file"; then
            words=$(last_words)
            printf '%s\t%s\n' "${file#"$root"}" "$words" >>"$work/broken"
            case $name in slipway*) fail "${file#"$root"} cannot be read: $words" ;; esac
        fi
        ln -s "$file" "$work/usable/$name"
        if ! try apt-get -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/usable" \
            indextargets; then
            grep -qF "${file#"$root"}	" "$work/broken" 2>/dev/null ||
                printf '%s\t%s\n' "${file#"$root"}" "$(last_words)" >>"$work/broken"
            mv "$work/usable/$name" "$work/usable/.$name"
        fi
    done
    sources="-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=$work/usable"
}

read_alone() {
    apt -o "Dir::Etc::sourcelist=$1" -o Dir::Etc::sourceparts=/dev/null \
        -o APT::Get::List-Cleanup=0 update
}

# -- between the controller and the transaction

start() {
    digest=$1
    exec 9>"$work/start.lock"
    flock 9
    read -r running <"$work/digest" 2>/dev/null || running=
    case $(systemctl show -p ActiveState --value "$unit") in
    inactive | failed) ;;
    '') return 1 ;; # it has told standard error why
    *)
        [ "$running" = "$digest" ] && state=resumed || state=other
        printf '@apt state %s\n' "$state"
        return
        ;;
    esac
    if [ "$(cat "$work/result" 2>/dev/null)" = "$digest 0" ]; then
        printf '@apt state resumed\n'
        return
    fi
    rm -f "$work/result" "$work/broken" "$work/log" "$work/step"
    : >"$work/status"
    printf '%s\n' "$digest" >"$work/digest"
    systemd-run --quiet --collect --unit="$unit" --description='slipway: change packages' \
        --service-type=exec sh "$work/apt.sh" "$root" run "$@" </dev/null >&2 9>&- || return 1
    printf '@apt state started\n'
}

follow() {
    seen=$1 turns=0 gone=0
    while [ "$turns" -lt 40 ]; do
        if [ -e "$work/result" ]; then
            read -r _ code <"$work/result"
            news "$seen"
            [ -e "$work/broken" ] && sed 's/^/@apt broken /' "$work/broken"
            printf '@apt ended %s\n' "$code"
            return
        fi
        case $(systemctl show -p ActiveState --value "$unit") in
        inactive | failed) gone=$((gone + 1)) ;;
        *) gone=0 ;;
        esac
        if [ "$gone" -gt 2 ]; then
            news "$seen"
            printf '@apt gone\n'
            return
        fi
        [ "$(wc -l <"$work/status")" -gt "$seen" ] && break
        turns=$((turns + 1))
        sleep 0.5
    done
    news "$seen"
    printf '@apt log %s\n' "$(tail -n 1 "$work/step" 2>/dev/null | cut -c 1-200)"
}

# Until then an answer may be lost: `start` of the next run finds the result, and repeats nothing.
seen() {
    case $(cat "$work/result" 2>/dev/null) in "$1 "*) rm -f "$work/result" ;; esac
}

news() { tail -n "+$(($1 + 1))" "$work/status" 2>/dev/null | sed 's/^/@apt status /'; }

# -- sources

replace() {
    text=$1 target=$root$2
    shift 2
    check=$work/check
    rm -rf "$check"
    mkdir -p "$check/lists/partial"
    # A full disk leaves less of it, which apt would read all the same.
    if ! printf '%s' "$text" >"$check/new.sources"; then
        echo "the new sources cannot be written below $work: $(df -P "$work" | tail -n 1)" >&2
        rm -rf "$check"
        return 1
    fi
    # Lists of its own: the host keeps those that it has, and no lock is in the way.
    if ! apt-get -q -o "Dir::Etc::sourcelist=$check/new.sources" -o Dir::Etc::sourceparts=/dev/null \
        -o "Dir::State::lists=$check/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
        -o APT::Update::Error-Mode=any -o Acquire::Retries=1 update \
        >"$check/step" 2>&1 </dev/null; then
        grep -E '^[EW]: ' "$check/step" | head -n 3 >&2
        rm -rf "$check"
        return 1
    fi
    rm -rf "$check/lists"
    for file; do
        [ -e "$root$file" ] || [ -L "$root$file" ] || continue
        codename >"$work/replaced-on"
        mkdir -p "$(dirname "$kept$file")"
        cp -a "$root$file" "$kept$file.new" && mv -fT "$kept$file.new" "$kept$file" || return 1
    done
    mkdir -p "$(dirname "$target")"
    mv -fT "$check/new.sources" "$target" && sync -f "$target" || return 1
    for file; do rm -f "$root$file"; done
    rm -rf "$check"
}

# Copies of another release than that of the host stay where they are.
restore() {
    target=$root$1
    shift
    if [ -e "$work/replaced-on" ] && [ "$(cat "$work/replaced-on")" != "$(codename)" ]; then
        echo "the copies in ${kept#"$root"} are of $(cat "$work/replaced-on")," \
            "the host runs $(codename)" >&2
        return 1
    fi
    for file; do
        [ -e "$kept$file" ] || [ -L "$kept$file" ] || continue
        cp -a "$kept$file" "$root$file.new" && mv -fT "$root$file.new" "$root$file" || return 1
    done
    for file; do
        case $file in -*) rm -f "$root${file#-}" || return 1 ;; esac
    done
    rm -f "$target" && rm -rf "$kept" "$work/replaced-on"
}

codename() { sed -n 's/^VERSION_CODENAME=//p' "$root/etc/os-release" | tr -d "\"'"; }

mkdir -p "$work" && chmod 0711 "$work" || exit 1
case $verb in start | follow | run) umask 077 ;; esac
"$verb" "$@"
