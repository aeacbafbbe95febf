# shellcheck shell=bash
# What the scripts here share: messages, checks of variables, and commands that a dry run prints.
# It is sourced by them.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
self=${self:-$0} # the script, whose first lines are its help
dry=''           # --dry-run was given
flags=()         # what came after --

fail() { # bad input
    printf 'error: %s\n' "$*" >&2
    exit 2
}

broken() { # something else failed
    printf 'error: %s\n' "$*" >&2
    exit 1
}

say() {
    printf '[%s] %s\n' "$(date '+%F %T')" "$*"
}

usage() { # the comment at the top of $self
    sed -n '2,/^set /{/^set /d;/^# shellcheck/d;s/^# \{0,1\}//;p;}' "$self"
}

# The words of a command as a shell reads them back.
quoted() {
    local word line='' quote="'\\''"
    for word; do
        if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
            line+=" $word"
        else
            line+=" '${word//\'/$quote}'"
        fi
    done
    printf '%s\n' "${line# }"
}

# Runs a command; in a dry run prints it instead, on 3, which is also seen from within $(...).
exec 3>&1
act() {
    if [[ $dry ]]; then
        quoted "$@" >&3
    else
        "$@"
    fi
}

check() { # NAME PATTERN EXAMPLE: whether the variable NAME has a value of that form
    local value=${!1-}
    [[ $value ]] || fail "$1 is not set; write for example: export $1=$3"
    [[ $value =~ ^($2)$ ]] || fail "$1=$value is not of the form needed; write for example: export $1=$3"
}

# Whether CONFIG and WORKDIR, of the form $1 as $2, and the flags after -- are those of a run.
check_run() {
    local flag
    check WORKDIR "$1" "$2"
    check CONFIG '[^[:space:]]+\.py(:.*)?' configs/deit_b.py:stage=search
    for flag in ${flags[@]+"${flags[@]}"}; do
        [[ $flag == --* ]] || fail "after -- come flags of spvit_jax.main, --NAME=VALUE; got $flag"
        case $flag in
        --config=* | --workdir=*) fail "$flag: set it with export CONFIG=... or WORKDIR=..." ;;
        esac
    done
}

# What the checkout has committed, as COMMIT, unless it is given.
check_commit() {
    local given=${COMMIT-}
    if [[ -z $given ]]; then
        [[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] ||
            fail "this checkout has changes that are in no commit; commit them, or name what to" \
                "run: export COMMIT=$(git -C "$root" rev-parse HEAD)"
    fi
    COMMIT=$(git -C "$root" rev-parse --verify --quiet "${given:-HEAD}^{commit}") || COMMIT=$given
    check COMMIT '[0-9a-f]{40}' "$(git -C "$root" rev-parse HEAD)"
}
