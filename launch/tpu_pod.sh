#!/usr/bin/env bash
# A run on a Cloud TPU pod, from queue to result: every worker at the same commit, training that
# goes on when this shell disconnects, and a watcher that gets the pod again after a preemption.
#
#   launch/tpu_pod.sh create            asks for the pod and waits until it is there
#   launch/tpu_pod.sh setup             the same commit, Python and libraries on every worker
#   launch/tpu_pod.sh run [-- FLAGS]    starts python -m spvit_jax.main on every worker, detached,
#                                       and a detached watcher on this machine
#   launch/tpu_pod.sh logs              the workers' logs, as they come; --worker=N for one
#   launch/tpu_pod.sh status            pod, watcher, and each worker's state and last line
#   launch/tpu_pod.sh stop              ends watcher and run; the run saves first
#   launch/tpu_pod.sh delete            stop, then gives the pod back; --yes does not ask
#
# --dry-run with any of them prints the exact commands and runs none. FLAGS are those of
# spvit_jax.main, such as --config.budget.macs=0.7.
#
# Variables, to be exported:
#   NAME         of the pod: small letters, digits, hyphens                spvit
#   PROJECT      Google Cloud project                                      (must be set)
#   ZONE         such as us-west4-a                                        (must be set)
#   ACCELERATOR  such as v5litepod-64, v4-64, v5p-128, v6e-64: create, run (must be set)
#   RUNTIME      the VM's software                       that of ACCELERATOR in Google's table
#   SPOT         1: cheaper, may be preempted; 0: on demand                1
#   WORKDIR      gs://BUCKET/FOLDER, which the project's TPUs can write: run  (must be set)
#   CONFIG       such as configs/deit_b.py:stage=search, in the commit: run   (must be set)
#   COMMIT       what to run                   this checkout's HEAD, which must be clean and pushed
#   REPOSITORY   where workers fetch it: public, https://...     this checkout's origin
#   SSH_KEY      an existing key for gcloud, which is never made here  ~/.ssh/google_compute_engine
#   STATE        folder for the watcher's log and process number   tpu_pod/NAME in this folder
#   GRACE        seconds that stop gives the run to save                   300
#   POLL         seconds between two looks at the pod                      60
#   RESTARTS     of a crashed run in a row before giving up                20
#   PAUSE        seconds before the first of them; doubles up to 600       10
#
# Once started, training needs neither this shell nor this machine. The watcher does: after a
# preemption it deletes the pod, creates it, sets it up and starts the run, which goes on from its
# last checkpoint; so keep it on a machine that stays up. `run` again takes up watching where a
# watcher died. It ends by itself when the run has finished (exit code 0), says that its input is
# bad (2), or cannot be kept up; its exit code is then in STATE/exit_code. The pod is kept, and
# costs, until it is deleted.
#
# Exit codes: 0 done; 1 the pod or a worker failed; 2 bad input or order, which the message explains.
# Needs gcloud (logged in) and git. The ssh key is used, not read; gcloud itself notes the pod's
# host keys beside it.
set -euo pipefail

launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
self=$launch/tpu_pod.sh
# shellcheck source=launch/common.sh
source "$launch/common.sh"
# shellcheck source=launch/tpu_watch.sh
source "$launch/tpu_watch.sh"
yes='' worker=all verb=''

# ---- what the user says

check_pod() {
    check NAME '[a-z]([a-z0-9-]{0,48}[a-z0-9])?' spvit
    check PROJECT '[a-z][a-z0-9.:-]*[a-z0-9]' my-project
    check ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' us-west4-a
    check POLL '0|[1-9][0-9]{0,8}' 60
    check GRACE '0|[1-9][0-9]{0,8}' 300
    check RESTARTS '0|[1-9][0-9]{0,8}' 20
    check PAUSE '0|[1-9][0-9]{0,8}' 10
}

check_request() {
    check ACCELERATOR '(v4|v5litepod|v5p|v6e)-[1-9][0-9]*' v5litepod-64
    check SPOT '[01]' 1
    if [[ -z ${RUNTIME-} ]]; then
        case $ACCELERATOR in
        v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
        v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
        v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
        *) RUNTIME=tpu-ubuntu2204-base ;;
        esac
    fi
    check RUNTIME '[a-z0-9][a-z0-9.-]*' v2-alpha-tpuv5-lite
}

check_key() {
    [[ -f $SSH_KEY ]] || fail "there is no ssh key at $SSH_KEY, and this script makes none; set" \
        "SSH_KEY to one that you use with gcloud, or make it: ssh-keygen -t ed25519 -f '$SSH_KEY'"
}

check_code() {
    local given=${COMMIT-} origin file
    check_commit
    if [[ -z ${REPOSITORY-} ]]; then
        origin=$(git -C "$root" config remote.origin.url) ||
            fail "this checkout has no origin; write: export REPOSITORY=https://HOST/OWNER/REPOSITORY"
        REPOSITORY=$origin
        [[ ! $origin =~ ^(ssh://)?git@([^:/]+)[:/](.+)$ ]] ||
            REPOSITORY=https://${BASH_REMATCH[2]}/${BASH_REMATCH[3]}
        [[ $given || $(git -C "$root" branch --remotes --contains "$COMMIT" 2>/dev/null) ]] ||
            fail "commit $COMMIT is not on origin, so workers cannot fetch it; git push it first"
    fi
    check REPOSITORY 'https://[A-Za-z0-9._-]+(:[0-9]+)?/[A-Za-z0-9._/~-]+' \
        'https://github.com/OWNER/REPOSITORY (public; keys and passwords are not passed on)'
    file=${CONFIG-}
    file=${file%%:*}
    [[ -z $file ]] || ! git -C "$root" cat-file -e "$COMMIT" 2>/dev/null ||
        git -C "$root" cat-file -e "$COMMIT:$file" 2>/dev/null ||
        fail "CONFIG=$CONFIG: commit $COMMIT has no file $file; give a path in the repository"
}

# ---- the pod

gcloud_tpus() { # GROUP VERB FLAGS
    act gcloud compute tpus "$1" "$2" "$NAME" --project="$PROJECT" --zone="$ZONE" "${@:3}"
}

# The queued resource's state; ABSENT where there is none, UNKNOWN where gcloud could not tell.
pod_state() {
    local answer errors
    if [[ $dry ]]; then
        gcloud_tpus queued-resources describe '--format=value(state.state)'
        printf '%s\n' "$1"
        return
    fi
    errors=$(mktemp)
    if answer=$(gcloud_tpus queued-resources describe '--format=value(state.state)' 2>"$errors"); then
        printf '%s\n' "${answer:-UNKNOWN}"
    elif grep -q -e NOT_FOUND -e 'was not found' "$errors"; then
        printf 'ABSENT\n'
    else
        cat "$errors" >&2
        printf 'UNKNOWN\n'
    fi
    rm -f "$errors"
}

request() {
    local spot=(--spot)
    [[ $SPOT == 1 ]] || spot=()
    gcloud_tpus queued-resources create --node-id="$NAME" --accelerator-type="$ACCELERATOR" \
        --runtime-version="$RUNTIME" ${spot[@]+"${spot[@]}"} --quiet
}

create() {
    local state before=''
    state=$(pod_state ABSENT)
    if [[ $state == ABSENT ]]; then
        request || broken "gcloud could not create $NAME; its message is above"
    fi
    while :; do
        state=$(pod_state ACTIVE)
        [[ $state == "$before" ]] || say "$NAME is $state"
        before=$state
        case $state in
        ACTIVE) return ;;
        FAILED | SUSPEND* | PREEMPTED | ABSENT)
            broken "$NAME is $state and will not become ACTIVE; delete it, then create it again" ;;
        esac
        sleep "$POLL"
    done
}

# ---- the workers

remote() { # VERB ARGUMENTS: the command that does it on a worker
    quoted "RESTARTS=$RESTARTS" "PAUSE=$PAUSE" bash "spvit/$NAME/code/launch/tpu_worker.sh" "$@"
}

# Runs a command on all workers. What each said goes to $replies/N.log; fails where one failed or
# did not answer.
on_workers() {
    local count number
    rm -rf "$replies"
    [[ $dry ]] || mkdir -p "$replies"
    gcloud_tpus tpu-vm ssh --worker=all --quiet --ssh-key-file="$SSH_KEY" \
        --output-directory="$replies" --command="$1" || return 1
    [[ -z $dry ]] || return 0
    count=$(gcloud_tpus tpu-vm describe '--format=value(networkEndpoints.len())') || return 1
    for ((number = 0; number < count; number++)); do
        [[ -s $replies/$number.log ]] || return 1
    done
}

# Prints what the workers said last, in the workers' order.
print_replies() {
    local file
    for file in $(cd "$replies" 2>/dev/null && printf '%s\n' * | sort -n); do
        [[ ! -f $replies/$file ]] || sed "s/^/worker ${file%.log}: /" "$replies/$file"
    done
}

# Fetches exactly COMMIT, unless a run of another one is going on.
setup() {
    local folder=spvit/$NAME repository
    repository=$(quoted "$REPOSITORY")
    on_workers "set -eu; export GIT_TERMINAL_PROMPT=0; mkdir -p $folder; cd $folder; \
[ -d code ] || git init --quiet code; \
if [ \"\$(git -C code rev-parse --verify --quiet HEAD)\" != $COMMIT ]; then \
flock --nonblock lock true || { echo 'another commit is running here; stop it first'; exit 2; }; \
git -C code fetch --quiet --depth 1 $repository $COMMIT || \
{ echo \"cannot fetch $COMMIT; is it pushed, and\" $repository public?; exit 2; }; \
git -C code checkout --quiet --force --detach $COMMIT; fi; \
bash code/launch/tpu_worker.sh setup" || return 1
    [[ $dry ]] || all_answered "ready $COMMIT"
}

# Whether each worker's last line is the one expected.
all_answered() {
    local file
    for file in "$replies"/*.log; do
        [[ $(tail -n 1 "$file") == "$1" ]] || return 1
    done
}

start() {
    on_workers "$(remote start "$COMMIT" --config="$CONFIG" --workdir="$WORKDIR" \
        ${flags[@]+"${flags[@]}"})"
}

ask() {
    on_workers "if [ -e spvit/$NAME/code/launch/tpu_worker.sh ]; then $(remote status); \
else echo status=idle code=- commit=- last=; fi"
}

# ---- the verbs

run() {
    local pid state log=$STATE/watch.log
    if [[ -z $dry ]] && pid=$(watcher); then
        fail "a watcher (process $pid) already keeps $NAME running; see status and logs, or stop it"
    fi
    state=$(pod_state ACTIVE)
    [[ $state == ACTIVE ]] || broken "$NAME is $state, not ACTIVE; create it first"
    start || { print_replies >&2; broken "the run is not started on all workers; setup comes before run"; }
    export NAME PROJECT ZONE ACCELERATOR RUNTIME SPOT WORKDIR CONFIG COMMIT REPOSITORY
    export SSH_KEY STATE GRACE POLL RESTARTS PAUSE
    if [[ $dry ]]; then
        printf 'nohup %s </dev/null >>%s 2>&1 &\n' \
            "$(quoted bash "$self" watch -- ${flags[@]+"${flags[@]}"})" "$(quoted "$log")"
        return
    fi
    print_replies
    nohup bash "$self" watch -- ${flags[@]+"${flags[@]}"} </dev/null >>"$log" 2>&1 &
    printf '%s\n' "$!" >"$STATE/watch.pid"
    say "watched by process $!, which writes to $log"
}

status() {
    local pid
    say "$NAME is $(pod_state ACTIVE)"
    if ask; then print_replies; else
        print_replies
        say "not all workers answer"
    fi
    [[ -z $dry ]] || return 0
    if pid=$(watcher); then
        say "watcher: process $pid; $(tail -n 1 "$STATE/watch.log")"
    elif [[ -s $STATE/exit_code ]]; then
        say "watcher: ended with exit code $(<"$STATE/exit_code"); $(tail -n 1 "$STATE/watch.log")"
    else
        say "watcher: none"
    fi
}

logs() {
    gcloud_tpus tpu-vm ssh --worker="$worker" --quiet --ssh-key-file="$SSH_KEY" \
        --command="$(remote logs)"
}

# The watcher first, or it would bring the run back.
stop() {
    local pid
    if [[ $dry ]]; then
        printf 'kill -TERM WATCHER\n'
    elif pid=$(watcher); then
        say "stops watcher $pid, once it has done what it is at"
        kill -TERM "$pid"
        while watcher >/dev/null; do sleep 0.2; done
    fi
    [[ $(pod_state ACTIVE) == ACTIVE ]] || return 0
    on_workers "if [ -e spvit/$NAME ]; then $(remote stop "$GRACE"); else echo not running; fi" || {
        print_replies
        return 1
    }
    [[ $dry ]] || print_replies
}

delete() {
    local answer
    if [[ -z $yes && -z $dry ]]; then
        printf 'Stop the run on %s and delete the pod? Checkpoints stay. [y/N] ' "$NAME"
        read -r answer || fail "nobody answered; delete --yes does not ask"
        [[ $answer == [yY]* ]] || fail "not deleted"
    fi
    stop || say "not every worker says that it saved; the last checkpoint counts"
    if [[ $(pod_state ACTIVE) == ABSENT ]]; then
        say "$NAME is not there"
        return
    fi
    gcloud_tpus queued-resources delete --force --quiet || broken "gcloud could not delete $NAME"
    say "deleted $NAME"
}

parse() {
    while (($#)); do
        case $1 in
        --) shift && flags=("$@") && return ;;
        --dry-run) dry=1 ;;
        --yes) yes=1 ;;
        --worker=*) worker=${1#*=} ;;
        -h | --help) usage && exit ;;
        -*) fail "there is no $1; see --help (flags of spvit_jax.main come after --)" ;;
        *) [[ -z $verb ]] || fail "one verb at a time; got $verb and $1" && verb=$1 ;;
        esac
        shift
    done
    [[ $worker =~ ^(all|[0-9]+)$ ]] || fail "--worker=$worker: a worker's number, from 0, or all"
}

main() {
    parse "$@"
    case $verb in
    create | setup | run | logs | status | stop | delete | watch) ;;
    *) fail "expected create, setup, run, logs, status, stop or delete; got ${verb:-none}; see --help" ;;
    esac
    check_pod
    case $verb in create | run | watch) check_request ;; esac
    case $verb in create) ;; *) check_key ;; esac
    case $verb in setup | run | watch) check_code ;; esac
    case $verb in run | watch) check_run "$workdirs" gs://my-bucket/deit_b ;; esac
    command -v gcloud >/dev/null || fail "gcloud is not installed; see https://cloud.google.com/sdk"
    [[ $dry ]] || mkdir -p "$STATE"
    trap 'rm -rf "$replies"' EXIT
    case $verb in
    create) create ;;
    setup)
        setup || { print_replies >&2 && broken "not every worker is set up"; }
        print_replies
        ;;
    run) run ;;
    logs) logs ;;
    status) status ;;
    stop) stop ;;
    delete) delete ;;
    watch) watch ;;
    esac
}

NAME=${NAME-spvit} SPOT=${SPOT-1} GRACE=${GRACE-300} POLL=${POLL-60} RESTARTS=${RESTARTS-20}
PAUSE=${PAUSE-10} SSH_KEY=${SSH_KEY-$HOME/.ssh/google_compute_engine}
STATE=${STATE-$PWD/tpu_pod/$NAME}
replies=$STATE/replies.$$ # what the workers said last
workdirs='gs://[a-z0-9][a-z0-9._-]+/[^[:space:]]+'
main "$@"
exit
