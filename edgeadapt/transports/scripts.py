"""What runs on the other side: POSIX sh, nothing else is asked of a board.

Each script is preceded by `set --` and its arguments, and `MARKER` ends what a login shell may have
printed before. sha256sum is coreutils', busybox's and toybox's; shasum is macOS's. On Android, sh
is mksh, whose aliases (`hash`, `type`, ...) hide functions of that name, and hard links are
forbidden to adb's user.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

MARKER = "edgeadapt-on: ready"
ENDED = "edgeadapt-on: ended "
"""Before the exit code, on the last line, where the client does not hand it on."""
RECEIVING = "edgeadapt-on: receiving"
PEAK = "edgeadapt-on: peak "
"""Before the most KiB that a program had in memory, after what it wrote."""
KILLED = "the system killed a program there to free memory"

BUSY, NO_FILE, NO_SPACE, SHORT, WRONG, NO_FOLDER = 91, 92, 93, 94, 95, 96
"""Exit codes of the scripts, beside those of the program that they run."""

_START = f"""
umask 077
root=${{EDGEADAPT_CACHE:-${{folder:-${{XDG_CACHE_HOME:-$HOME/.cache}}/edgeadapt}}}}
files=$root/artifacts
mkdir -p "$files" "$root/work" || exit {NO_FOLDER}
if command -v sha256sum >/dev/null; then sum=sha256sum; else sum='shasum -a 256'; fi
digest() {{ $sum | cut -c1-64; }}
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)

# A lease is a symbolic link that points nowhere: made in one step, with its text.
take() {{
    ln -s "$$:$boot:$2" "$1" 2>/dev/null && return
    held "$1" && return 1
    rm -f "$1"
    ln -s "$$:$boot:$2" "$1" 2>/dev/null
}}
held() {{
    text=$(readlink "$1") || return 1
    pid=${{text%%:*}} rest=${{text#*:}} holder=${{text#*:*:}}
    [ "${{rest%%:*}}" = "$boot" ] || return 1
    {{ tr '\0' ' ' <"/proc/$pid/cmdline" || ps -o args= -p "$pid"; }} 2>/dev/null |
        grep -q edgeadapt-on
}}
echo '{MARKER}'
"""
"""`$root` and `$files`; `take LINK WHO` gets a lease unless a living script of ours has it, and
sets `$holder` then."""

PROBE = r"""
find_program() {
    case $1 in
        "/~/"*) command -v "$HOME/${1#/~/}"; return;;
        ?*) command -v "$1"; return;;
    esac
    for name in edgeadapt llama-bench; do
        for place in "$name" "$HOME/.local/bin/$name" "$HOME/.venv/bin/$name" \
            "$HOME/edgeadapt/.venv/bin/$name" "$HOME/llama.cpp/build/bin/$name"; do
            command -v "$place" && return
        done
    done
}
echo "files $files"
echo "program $(find_program "$1")"
find "$files" -type f -mtime +30 -exec rm -f {} +
"""
"""$1: the program to use (/~/ is the home folder), or empty.

Also forgets artifacts that were not used for 30 days."""

STATUS = r"""
while [ $# -gt 0 ]; do
    if [ -f "$files/$1" ] && [ "$(digest <"$files/$1")" = "$1" ]; then
        touch "$files/$1"
        echo "have $1"
    elif [ -f "$files/$1.part" ]; then
        size=$(($(wc -c <"$files/$1.part")))  # it may be growing
        echo "part $1 $size $(head -c "$size" "$files/$1.part" | digest)"
    else
        echo "none $1"
    fi
    shift
done
set -- $(df -Pk "$files" | tail -n 1)
echo "free $4"
"""
"""Each argument a sha256: is it here whole, in part (bytes, sha256 of them), or not at all."""

PUT = f"""
part=$files/$2.part lease=$files/$2.lease
receive() {{
    [ -n "$1" ] || {{ cat >>"$part"; return; }}
    echo '{RECEIVING}'
    while read -r piece; do
        cat "$files/$piece" >>"$part" && rm -f "$files/$piece" || return
    done
}}
tries=0
until take "$lease" "$1"; do  # a copy whose link broke may not be at its end yet
    tries=$((tries + 1))
    [ "$tries" -lt 40 ] || {{ echo "$holder" >&2; exit {BUSY}; }}
    sleep 0.5
done
trap 'rm -f "$lease" ${{5:+"$files/$5"*}}' EXIT
trap 'exit 143' HUP INT TERM PIPE
[ "$3" != 0 ] || : >"$part"
[ "$(wc -c <"$part")" -eq "$3" ] || exit {SHORT}
receive "$5" || exit {NO_SPACE}
[ "$(wc -c <"$part")" -ge "$4" ] || exit {SHORT}
[ "$(digest <"$part")" = "$2" ] || {{ rm -f "$part"; exit {WRONG}; }}
mv -f "$part" "$files/$2"
"""
"""$1: who asks; $2: sha256; $3: bytes that are here; $4: bytes of the whole. The rest comes on
stdin; or with $5, stdin tells names in `$files` of pieces to append, which begin with $5, and are
to be made after the script said `RECEIVING`."""

FORGET = """
rm -f "$files/$1"*
"""
"""$1: how the names of pieces begin that nobody appends."""

CORES = """
for core in /sys/devices/system/cpu/cpu[0-9]*; do
    [ "$(cat "$core/online")" != 0 ] || continue
    speed=$(cat "$core/cpu_capacity" || cat "$core/cpufreq/cpuinfo_max_freq")
    echo "core ${core##*/cpu} ${speed:-0}"
done 2>/dev/null
"""
"""Each core that is on, and how fast it is beside the others: the kernel's own number for that, or
else its highest clock."""

RUN = f"""
who=$1 id=$2 quiet=$3 count=$4 gauge=$5
shift 5
lease=$root/lease work=$root/work/$id child= watch= stopped=
if command -v setsid >/dev/null; then lead=setsid minus=-; else lead=env minus=; fi
kills() {{ grep '^oom_kill ' /proc/vmstat 2>/dev/null; }}

finish() {{
    trap '' HUP INT TERM PIPE
    if [ -n "$child" ]; then
        kill -s TERM -- "$minus$child"
        $lead sh -c 'sleep 5; kill -s KILL -- "$0"' "$minus$child" &
        wait "$child"
        kill -s KILL -- "$minus$!" "$minus$child"
    fi
    for other in $watch $gauge; do kill -s KILL -- "$minus$other"; done
    cd / && rm -rf "$work"
    rm -f "$lease"
}}
take "$lease" "$who" || {{ echo "$holder" >&2; exit {BUSY}; }}
trap 'finish >/dev/null 2>&1; [ -z "$stopped" ] || exit 143' EXIT  # else mksh forgets the code
trap 'stopped=1; exit 143' HUP INT TERM PIPE
rm -rf "$root/work"
mkdir -p "$work"
while [ "$count" -gt 0 ]; do
    case $2 in */*) mkdir -p "$work/${{2%/*}}";; esac
    [ -f "$files/$1" ] || exit {NO_FILE}
    {{ ln "$files/$1" "$work/$2" || ln -s "$files/$1" "$work/$2" || cp "$files/$1" "$work/$2"
    }} 2>/dev/null || exit {NO_FILE}
    shift 2
    count=$((count - 1))
done
cd "$work"
killed=$(kills)
exec 3<&0
TMPDIR=$work $lead "$@" </dev/null 3<&- &
child=$!
# A line comes every few seconds. Silence, or the end of stdin: the other side is gone.
$lead sh -c '
    while :; do
        (sleep "$1"; kill -s TERM "$0") &
        read -r line || break
        kill $!
    done
    kill -s TERM "$0"
    sleep 15
    kill -s KILL -- "$2"' $$ "$quiet" "$minus$child" <&3 >/dev/null 2>&1 &
watch=$!
exec 3<&-
if [ -n "$gauge" ]; then
    $lead sh -c '
        while :; do
            while read -r key size unit; do
                [ "$key" != VmHWM: ] || echo "$size" >"$1"
            done <"/proc/$0/status" || break
            sleep 0.5
        done' "$child" "$work/.peak" </dev/null >/dev/null 2>&1 &
    gauge=$!
fi
wait "$child"
code=$?
[ ! -s "$work/.peak" ] || echo "{PEAK}$(cat "$work/.peak")"
[ "$code" != 137 ] || [ "$(kills)" = "$killed" ] || echo '{KILLED}' >&2
exit "$code"
"""
"""$1: who asks; $2: name of the working folder; $3: seconds of silence after which to end;
$4: number of files; $5: yes, to see how much memory it takes, or empty; then so many pairs of
sha256 and name, then the program and its arguments.

One run at a time. The program leads a session of its own, so that all of it can be ended. Linux
keeps its peak of memory, and twice a second it is asked for that."""


BROUGHT = 'chmod u+x "$0" && LD_LIBRARY_PATH=$PWD${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$@"'
"""To run a program, $0, that was copied with its libraries beside it."""


def with_arguments(script: str, arguments: Sequence[str], folder: str = "") -> bytes:
    """The whole script, with `$1` and so on set, and where to keep things if not in the cache.

    In braces: of a script that did not arrive whole, nothing runs.
    """
    words = " ".join(shlex.quote(a) for a in arguments)
    text = f"set -- {words}\nfolder={shlex.quote(folder)}\n{_START}{script}"
    return f"{{\n{text}\n}}\n".encode()


def command_line(script: bytes, *, replace: bool = True) -> str:
    """What to tell the login shell, whichever it is: read the script from stdin, then run it.

    With `replace`, in the place of that shell.

    dd reads byte by byte, so that what follows on stdin is left for the script.
    """
    how = "exec " if replace else ""
    return f"{how}sh -c 'eval \"$(dd bs=1 count={len(script)} 2>/dev/null)\"' edgeadapt-on"
