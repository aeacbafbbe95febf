#!/usr/bin/env bash
# A run on a TPU slice of a Google Kubernetes Engine cluster that has JobSet and TPU nodes.
#
#   launch/gke.sh build                 builds launch/Dockerfile of a commit and pushes it
#   launch/gke.sh run [-- FLAGS]        starts launch/gke.yaml on every host of the slice
#   launch/gke.sh logs                  what the hosts say, as it comes
#   launch/gke.sh status                JobSet and pods
#   launch/gke.sh delete                ends the run, which saves first; checkpoints stay
#
# --dry-run with any of them prints the exact commands, and the manifest, and runs none. FLAGS are
# those of spvit_jax.main, such as --config.budget.macs=0.7.
#
# Variables, to be exported:
#   NAME             of the run: small letters, digits, hyphens                    spvit
#   IMAGE            where it is pushed to: us-docker.pkg.dev/PROJECT/REPOSITORY/spvit
#                                                             build, run           (must be set)
#   COMMIT           what is built, and the image's tag       this checkout's HEAD, which must be
#                                                             clean
#   TPU              tpu-v5-lite-podslice, tpu-v4-podslice, tpu-v5p-slice or tpu-v6e-slice: run
#                                                                                  (must be set)
#   TOPOLOGY         of the slice, such as 8x8 or 2x4x4: run                       (must be set)
#   CHIPS            of a host: run                                                4
#   SPOT             true or false, as the nodes are: run                          true
#   WORKDIR          gs://BUCKET/FOLDER, which SERVICE_ACCOUNT can write: run      (must be set)
#   CONFIG           such as configs/deit_b.py:stage=search: run                   (must be set)
#   NAMESPACE        of the cluster                                                default
#   SERVICE_ACCOUNT  of the namespace, with Workload Identity to WORKDIR: run      default
#   GRACE            seconds to save after SIGTERM; spot nodes give 25: run        300
#   RESTARTS         of all hosts, after preemptions and crashes: run              100
#
# The cluster starts the run again after a preemption or a crash, from its last checkpoint, on the
# same image; not where it has finished (exit code 0) or says that its input is bad (2).
# Needs docker and kubectl, logged in to registry and cluster.
set -euo pipefail

launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
self=$launch/gke.sh
# shellcheck source=launch/common.sh
source "$launch/common.sh"
verb=''
jobset='jobset.sigs.k8s.io/jobset-name'

parse() {
    while (($#)); do
        case $1 in
        --) shift && flags=("$@") && return ;;
        --dry-run) dry=1 ;;
        -h | --help) usage && exit ;;
        -*) fail "there is no $1; see --help (flags of spvit_jax.main come after --)" ;;
        *) [[ -z $verb ]] || fail "one verb at a time; got $verb and $1" && verb=$1 ;;
        esac
        shift
    done
}

check_image() {
    check IMAGE '[a-z0-9.:-]+(/[a-z0-9._-]+)+' us-docker.pkg.dev/my-project/my-repository/spvit
    check_commit
}

check_slice() {
    local side sides chips=1
    check TPU 'tpu-(v4-podslice|v5-lite-podslice|v5p-slice|v6e-slice)' tpu-v5-lite-podslice
    check TOPOLOGY '[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}' 8x8
    check CHIPS '[148]' 4
    check SPOT 'true|false' true
    check SERVICE_ACCOUNT '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' default
    check GRACE '0|[1-9][0-9]{0,8}' 300
    check RESTARTS '0|[1-9][0-9]{0,8}' 100
    IFS=x read -r -a sides <<<"$TOPOLOGY"
    for side in "${sides[@]}"; do chips=$((chips * side)); done
    ((chips % CHIPS == 0)) ||
        fail "TOPOLOGY=$TOPOLOGY has $chips chips, which hosts of CHIPS=$CHIPS cannot divide"
    HOSTS=$((chips / CHIPS))
}

# The manifest with its variables filled in.
manifest() {
    local text name flag arguments='' spot_nodes=NotIn
    [[ $SPOT == false ]] || spot_nodes=In
    for flag in --config="$CONFIG" --workdir="$WORKDIR" ${flags[@]+"${flags[@]}"}; do
        arguments+="${arguments:+, }$(json "$flag")"
    done
    text=$(<"$launch/gke.yaml")
    for name in NAME NAMESPACE COMMIT RESTARTS SERVICE_ACCOUNT GRACE TPU TOPOLOGY IMAGE CHIPS; do
        fill "$name" "${!name}"
    done
    fill HOSTS "$HOSTS"
    fill SPOT_NODES "$spot_nodes"
    fill ARGUMENTS "$arguments"
    printf '%s\n' "$text"
}

# Puts the value $2 in the places of the variable $1.
fill() {
    text=${text//"\${$1}"/"$2"}
}

# A string as JSON, and so YAML, writes it.
json() {
    local text=$1 backslash="\\" quote='"'
    text=${text//"$backslash"/"$backslash$backslash"}
    text=${text//"$quote"/"$backslash$quote"}
    printf '"%s"' "$text"
}

# The commit itself, not what else lies in the checkout.
build() {
    local command=(docker build --file=launch/Dockerfile --build-arg=COMMIT="$COMMIT"
        --tag="$IMAGE:$COMMIT" -)
    if [[ $dry ]]; then
        printf '%s | %s\n' "$(quoted git -C "$root" archive "$COMMIT")" "$(quoted "${command[@]}")"
    else
        git -C "$root" archive "$COMMIT" | "${command[@]}" ||
            broken "the image was not built; docker says above why"
    fi
    act docker push "$IMAGE:$COMMIT" || broken "the image was not pushed; docker says above why"
}

run() {
    if [[ $dry ]]; then
        printf "kubectl create --filename=- <<'YAML'\n%s\nYAML\n" "$(manifest)"
        return
    fi
    manifest | kubectl create --filename=- ||
        broken "the run was not started; kubectl says above why (one of that name: delete it first)"
}

main() {
    parse "$@"
    case $verb in build | run | logs | status | delete) ;;
    *) fail "expected build, run, logs, status or delete; got ${verb:-none}; see --help" ;;
    esac
    check NAME '[a-z]([a-z0-9-]{0,40}[a-z0-9])?' spvit
    check NAMESPACE '[a-z0-9]([a-z0-9-]*[a-z0-9])?' default
    case $verb in build | run) check_image ;; esac
    case $verb in
    build) build ;;
    run)
        check_slice
        check_run 'gs://[a-z0-9][a-z0-9._-]+/[^[:space:]]+' gs://my-bucket/deit_b
        run
        ;;
    logs)
        act kubectl logs --namespace="$NAMESPACE" --selector="$jobset=$NAME" --follow --prefix \
            --max-log-requests=512
        ;;
    status)
        act kubectl get --namespace="$NAMESPACE" "jobset/$NAME"
        act kubectl get pods --namespace="$NAMESPACE" --selector="$jobset=$NAME" --output=wide
        ;;
    delete) act kubectl delete --namespace="$NAMESPACE" "jobset/$NAME" --cascade=foreground ;;
    esac
}

NAME=${NAME-spvit} NAMESPACE=${NAMESPACE-default} CHIPS=${CHIPS-4} SPOT=${SPOT-true}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT-default} GRACE=${GRACE-300} RESTARTS=${RESTARTS-100}
main "$@"
exit
