# What up and down share: the list of what was started, and how each of it is ended. Sourced.
# shellcheck shell=bash

# Each line: a name, a process id, the process's start in ticks since the machine's, the signal that ends it.
# Together with its start an id means one process, now or never again.
started_list() {
    echo "$1/started"
}

# When a process started, in ticks; nothing if it is gone or a zombie, which is gone but for its parent.
start_of() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # The second field is the program's name in brackets and may hold anything.
    stat=${stat##*) }
    local -a fields
    read -ra fields <<<"$stat"
    [[ ${fields[0]} == Z ]] || echo "${fields[19]}"
}

is_running() {
    [[ -n $2 && $(start_of "$1") == "$2" ]]
}

# Ends one process by its signal, and by SIGKILL if that takes too long; with it its group, which it
# leads and where its own children are.
end_process() {
    local name=$1 pid=$2 start=$3 signal=$4 left
    is_running "$pid" "$start" || return 0
    kill -s "$signal" -- "-$pid" 2>/dev/null || kill -s "$signal" "$pid" 2>/dev/null || return 0
    for ((left = 900; left > 0; left--)); do
        is_running "$pid" "$start" || break
        sleep 0.1
    done
    ((left > 0)) || echo "$name does not end: killed" >&2
    kill -s KILL -- "-$pid" 2>/dev/null || true
}

# Ends all that was started, the last first, and removes what it left.
end_all() {
    local directory=$1 name pid start signal
    [[ -e $(started_list "$directory") ]] || return 0
    while read -r name pid start signal; do
        # Not the shell that does this.
        [[ $pid == "$$" ]] || end_process "$name" "$pid" "$start" "$signal"
    done < <(tac "$(started_list "$directory")")
    if [[ -e $directory/postgres-directory ]]; then
        rm -rf -- "$(<"$directory/postgres-directory")"
    fi
    rm -rf -- "$directory"
}
