# shellcheck shell=bash
# The watcher that `tpu_pod.sh run` leaves behind, of which this is a part: looks at the pod every
# POLL seconds, gets it again after a preemption, and ends when the run is over.

told=''        # that it is to stop
failures=0     # in a row, since the run was last seen running
replacing=''   # deleted, and not yet created again

# The process number of a living watcher.
watcher() {
    local pid
    pid=$(cat "${STATE:?}/watch.pid" 2>/dev/null) || return 1
    [[ $(ps -o args= -p "$pid" 2>/dev/null) == *tpu_pod.sh\ watch* ]] || return 1
    printf '%s\n' "$pid"
}

finish() {
    say "$2"
    printf '%s\n' "$1" >"$STATE/exit_code"
    rm -f "$STATE/watch.pid"
    exit "$1"
}

watch() {
    local before='' state
    trap 'told=1' TERM INT
    rm -f "$STATE/exit_code"
    printf '%s\n' "$$" >"$STATE/watch.pid"
    while [[ -z $told ]]; do
        state=$(pod_state ACTIVE)
        [[ $state == "$before" ]] || say "$NAME is $state"
        before=$state
        case $state in
        ACTIVE) attend ;;
        SUSPENDED | FAILED | PREEMPTED) replace "$state" ;;
        ABSENT)
            [[ $replacing ]] ||
                finish 1 "the pod was deleted by somebody else, so it is not created again"
            replace "$state"
            ;;
        esac
        ((failures < 5)) || finish 1 "5 failures in a row, shown above; run takes up watching again"
        [[ $told ]] || { sleep "$POLL" & wait $! || true; }
    done
    finish 143 "stops watching, as told"
}

replace() { # STATE
    say "gets $NAME again"
    replacing=1
    failures=$((failures + 1))
    [[ $1 == ABSENT ]] || gcloud_tpus queued-resources delete --force --quiet || return 0
    [[ $told ]] || ! request || replacing=''
}

# One look at an ACTIVE pod's workers: ends the run where it is over on one of them, brings up
# those on which it has not begun.
attend() {
    local said code
    if ! ask; then
        lost || say "not all workers answer: $(print_replies | tail -n 1)"
        return
    fi
    said=$(print_replies)
    if code=$(ended <<<"$said"); then
        say "$said"
        on_workers "$(remote stop "$GRACE")" || true
        finish "$code" "exit code $code on a worker, as above; the run is not started again"
    elif grep -q 'status=idle' <<<"$said"; then
        failures=$((failures + 1))
        if [[ -z $told ]] && setup && start; then
            say "started on all workers"
        else
            say "not started: $(print_replies)"
        fi
    elif grep -q 'status=running' <<<"$said"; then
        failures=0
    else
        finish 0 "finished; delete gives the pod back"
    fi
}

# The exit code of a worker that has ended, unless it is 0. Bad input (2) on one explains whatever
# the others died of.
ended() {
    local codes
    codes=$(sed -n 's/.*status=exited code=\([0-9]*\) .*/\1/p' | grep -v -x 0) || return 1
    grep -x -m 1 2 <<<"$codes" || head -n 1 <<<"$codes"
}

# Whether the VMs are gone while the request still counts as ACTIVE; they are replaced then.
lost() {
    local vm
    vm=$(gcloud_tpus tpu-vm describe '--format=value(state)' 2>&1) || true
    case $vm in
    PREEMPTED | TERMINATED | STOPPED | *NOT_FOUND*) ;;
    *) return 1 ;;
    esac
    say "its VMs are gone: $vm"
    replace ACTIVE
}
