#!/bin/sh
# Stands in for the compiler where the driver test places it: what was compiled once with the same
# words and from the same source is taken from what was kept of it.
real=$0.real kept=/var/cache/compiled
source='' object='' depends='' last='' compiles=
for word; do
    [ "$last" = -o ] && object=$word
    case $word in
    -c | -M) compiles=1 ;;
    /dev/null | conftest*.c | /*.c) source=$word ;;
    -Wp,-MMD,*) depends=${word#-Wp,-MMD,} ;;
    esac
    last=$word
done
[ -n "$compiles" ] && [ -e "$source" ] && [ -d "$kept" ] || exec "$real" "$@"
case $object$source in *-M* | /dev/null) ;; conftest*.c) object=${source%.c}.o ;; esac
# Names of files that last for one question to the compiler have the number of a process.
key=$({ echo "$*"; cat "$source"; } | sed 's/conftest[0-9]*/conftest/g; s/tmp_[0-9]*/tmp/g' | md5sum)
at=$kept/${key%% *}
if [ ! -e "$at.code" ]; then
    new=$at.$$
    "$real" "$@" >"$new.out" 2>"$new.err"
    code=$?
    # What a kill has left without its object is not kept.
    [ "$code" -ne 0 ] || [ -z "$object" ] || [ -e "$object" ] || exit 1
    [ ! -s "$object" ] || cp "$object" "$new.o" || exit 1
    [ ! -s "$depends" ] || cp "$depends" "$new.d" || exit 1
    echo "$code" >"$new.code"
    for part in out err o d code; do # the last says that all of them are there
        [ ! -e "$new.$part" ] || mv -f "$new.$part" "$at.$part"
    done
else
    read -r code <"$at.code"
    [ ! -e "$at.o" ] || cp "$at.o" "$object"
    [ ! -e "$at.d" ] || cp "$at.d" "$depends"
fi
[ ! -s "$at.err" ] || cat "$at.err" >&2
[ ! -s "$at.out" ] || cat "$at.out"
exit "$code"
