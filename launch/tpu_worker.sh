#!/usr/bin/env bash
# One worker's side of tpu_pod.sh, which checks this commit out there and calls it over ssh.
#
#   tpu_worker.sh setup                  Python, a virtual environment and the package
#   tpu_worker.sh start COMMIT FLAGS     spvit_jax.main, detached and supervised; leaves it alone
#                                        where it already runs
#   tpu_worker.sh status                 one line: status=running|exited|idle code=... last=...
#   tpu_worker.sh logs                   the log's end; as long as the run goes on, what comes next
#   tpu_worker.sh stop SECONDS           SIGTERM, on which the run saves, and so long to do it
#   tpu_worker.sh supervise COMMAND      (what start leaves behind) runs COMMAND again on every
#                                        exit code but 0 and 2, until it is told to stop
#
# All of it lives in the folder above the checkout: code/ venv/ tools/ python/ cache/ run.log and
# the run's lock, pid, command_line and exit_code. Nothing else of the home folder is touched.
#
# Variables (of start):
#   RESTARTS   restarts in a row before giving up             20
#   PAUSE      seconds before the first; doubles, up to 600   10
#   STEADY     seconds after which a run counts as healthy    1800
#              and the restarts are counted anew
# Needs bash, flock, git, setsid, tail and python3 with pip, as on every TPU VM.
set -euo pipefail

self=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
folder=$(cd "$(dirname "$self")/../.." && pwd)

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

check() { # NAME EXAMPLE: whether the variable NAME is a whole number
    [[ ${!1} =~ ^(0|[1-9][0-9]{0,8})$ ]] ||
        fail "$1=${!1} is not of the form needed; write for example: $1=$2"
}

# The supervisor, and whatever of the run outlives it, holds this lock.
running() {
    ! flock --nonblock lock true
}

# TPU VMs come with an older Python than this package takes, so uv brings its own. Libraries are
# those of the day of the commit: the same on every worker and after every preemption.
setup() {
    local commit uv=tools/bin/uv
    commit=$(git -C code rev-parse HEAD)
    if [[ ! -e venv/installed || $(<venv/installed) != "$commit" ]]; then
        export UV_CACHE_DIR=$folder/cache/uv UV_PYTHON_INSTALL_DIR=$folder/python UV_NO_CONFIG=1
        UV_EXCLUDE_NEWER=$(git -C code show --no-patch --format=%cI HEAD)
        export UV_EXCLUDE_NEWER
        [[ -x $uv ]] || python3 -m pip install --quiet --no-cache-dir --target tools uv
        "$uv" venv --quiet --allow-existing --python 3.11 venv
        "$uv" pip install --quiet --python venv/bin/python --editable "$folder/code[tpu,tfds,reports]"
        printf '%s\n' "$commit" >venv/installed
    fi
    printf 'ready %s\n' "$commit"
}

start() {
    local commit=$1 at command
    shift
    at=$(git -C code rev-parse HEAD)
    [[ $at == "$commit" && -e venv/installed && $(<venv/installed) == "$commit" ]] ||
        fail "commit $commit is not set up here (found $at); run tpu_pod.sh setup"
    command="$commit $(printf '%q ' "$@")"
    if running; then
        [[ $(<command_line) == "$command" ]] ||
            fail "another run is going on here: $(<command_line); tpu_pod.sh stop ends it"
        printf 'running since before\n'
        return
    fi
    printf '%s\n' "$command" >command_line
    rm -f pid exit_code
    export XDG_CACHE_HOME=$folder/cache SPVIT_CACHE=$folder/cache MPLCONFIGDIR=$folder/cache
    export PYTHONUNBUFFERED=1
    nohup setsid bash "$self" supervise "$folder/venv/bin/python" -m spvit_jax.main "$@" \
        </dev/null >>run.log 2>&1 &
    for _ in {1..100}; do
        [[ ! -s pid ]] || break
        sleep 0.1
    done
    [[ -s pid ]] || fail "the supervisor did not start: $(tail -n 1 run.log)"
    printf 'started\n'
}

say() {
    printf '[supervisor %(%F %T)T] %s\n' -1 "$*"
}

# Waits for $child; its exit code is in $code, also where a signal came in between.
await() {
    local interrupted_before
    while :; do
        interrupted_before=$interrupted
        wait "$child" && code=0 || code=$?
        [[ $interrupted != "$interrupted_before" ]] || return 0
    done
}

supervise() {
    local told='' interrupted=0 child='' code=0 failures=0 pause=$PAUSE began
    exec 9>lock
    flock --nonblock 9 || fail "the run is going on already"
    trap 'told=1; interrupted=$((interrupted + 1)); kill -TERM "$child" 2>/dev/null || true' TERM INT
    printf '%s\n' "$$" >pid
    cd code
    while [[ -z $told ]]; do
        began=$SECONDS
        "$@" &
        child=$!
        [[ -z $told ]] || kill -TERM "$child"
        await
        if [[ $code == [02] || -n $told ]]; then break; fi
        if ((SECONDS - began >= STEADY)); then failures=0 pause=$PAUSE; fi
        failures=$((failures + 1))
        if ((failures > RESTARTS)); then
            say "exit code $code; gives up after $RESTARTS restarts"
            break
        fi
        say "exit code $code; restart $failures of $RESTARTS in $pause s"
        local last=$code
        sleep "$pause" 9>&- &
        child=$!
        await
        code=$last
        pause=$((pause * 2 > 600 ? 600 : pause * 2))
    done
    say "ended with exit code $code"
    printf '%s\n' "$code" >"$folder/exit_code.new"
    mv "$folder/exit_code.new" "$folder/exit_code"
}

status() {
    local state=idle code=- last=''
    if running; then
        state=running
    elif [[ -s exit_code ]]; then
        state=exited code=$(<exit_code)
    fi
    [[ ! -s run.log ]] || last=$(tail -n 1 run.log | tail -c 200)
    printf 'status=%s code=%s commit=%.12s last=%s\n' \
        "$state" "$code" "$(git -C code rev-parse HEAD)" "$last"
}

logs() {
    local follow=(tail -n 50)
    ! running || follow+=(--follow=name --pid="$(<pid)")
    "${follow[@]}" run.log | sed --unbuffered "s/^/$(uname -n) | /"
}

stop() {
    local GRACE=$1 end
    check GRACE 300
    end=$((SECONDS + GRACE))
    if ! running; then
        printf 'not running\n'
        return
    fi
    kill -TERM "$(<pid)"
    while running; do
        ((SECONDS < end)) || fail "still saving after $GRACE s; GRACE gives it longer"
        sleep 0.2
    done
    printf 'stopped with exit code %s\n' "$(<exit_code)"
}

RESTARTS=${RESTARTS:-20} PAUSE=${PAUSE:-10} STEADY=${STEADY:-1800}
check RESTARTS 20
check PAUSE 10
check STEADY 1800
cd "$folder"
case ${1-} in
setup) setup ;;
start) start "${@:2}" ;;
status) status ;;
logs) logs ;;
stop) stop "${2-}" ;;
supervise) supervise "${@:2}" ;;
*) fail "expected setup, start, status, logs, stop or supervise; got ${1-nothing}" ;;
esac
exit
