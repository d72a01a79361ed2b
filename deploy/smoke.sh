#!/bin/sh
# Starts NVIDIA's containers with this model repository, one after the other, and asks each what users rely on (smoke.py).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
default_tags="24.11 25.06 26.08"

usage() {
    cat <<EOF
usage: deploy/smoke.sh [options] [TAG ...]
       deploy/smoke.sh --local [options]

Starts nvcr.io/nvidia/tritonserver:TAG-py3 ($default_tags) with the model repository mounted read-only, installs
what the models need, checks probes, answers, the order of streams under load, clients that leave, deadlines, errors,
metrics and reloading, ends it, and prints one line a check. Exit code 1 where one failed.

  --local             no container: the tritonserver on PATH, or the one that \$TRITONSERVER names, on free ports
  --repository PATH   model repository [$here/../model_repository]
  --artifact PATH     exported model [\$AUTOGLM_ARTIFACT, else engine/1/artifact in the repository]
  --install PACKAGE   also install this in the container, as onnxruntime==1.31.1 for artifacts of that runtime
  --docker-flags TEXT more flags for docker run, as "--gpus all"
  --image NAME        image without its tag [nvcr.io/nvidia/tritonserver]
  --timeout SECONDS   for a server to be ready [600]
  --log FILE          with --local: keep the server's log there
EOF
}

fail() {
    echo "Error: $1" >&2
    exit 2
}

local_server='' repository=$here/../model_repository artifact=${AUTOGLM_ARTIFACT:-}
install='' docker_flags='' image=nvcr.io/nvidia/tritonserver timeout=600 log='' tags=''
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage && exit 0 ;;
    --local) local_server=1 ;;
    --repository | --artifact | --install | --docker-flags | --image | --timeout | --log)
        [ $# -gt 1 ] || fail "$1 needs a value"
        case $1 in
        --repository) repository=$2 ;;
        --artifact) artifact=$2 ;;
        --install) install="$install $2" ;;
        --docker-flags) docker_flags=$2 ;;
        --image) image=$2 ;;
        --timeout) timeout=$2 ;;
        --log) log=$2 ;;
        esac
        shift
        ;;
    -*) fail "unknown option $1; --help lists them" ;;
    *) tags="$tags $1" ;;
    esac
    shift
done
[ -n "$artifact" ] || artifact=$repository/engine/1/artifact
[ -f "$repository/autoglm/config.pbtxt" ] || fail "there is no model repository at $repository"
[ -f "$artifact/manifest.json" ] || fail "there is no artifact at $artifact: autoglm export writes one"
[ -z "$local_server" ] || [ -z "$tags" ] || fail "--local starts one server; it takes no tags"
repository=$(cd "$repository" && pwd) artifact=$(cd "$artifact" && pwd)

# Whatever ends this script ends what it started.
container='' server_pid='' scratch=$(mktemp)
[ -n "$log" ] || log=$scratch
end_all() {
    [ -z "$container" ] || docker rm --force "$container" >/dev/null 2>&1 || true
    [ -z "$server_pid" ] || kill -KILL "$server_pid" 2>/dev/null || true
    container='' server_pid=''
}
trap 'end_all; rm -f "$scratch"' EXIT
trap 'exit 130' INT TERM

# ready URL, alive COMMAND ...: waits until the server answers; 1 where it ends or takes too long.
wait_ready() {
    url=$1 waited=0
    shift
    until python3 -c 'import sys, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(sys.argv[1], timeout=2)' "$url" 2>/dev/null; do
        "$@" || return 1
        [ "$waited" -lt "$timeout" ] || return 1
        sleep 1
        waited=$((waited + 1))
    done
}

# Seconds, rounded down, until COMMAND ... fails; at most $1 of them.
wait_end() {
    most=$1 waited=0
    shift
    while "$@" && [ "$waited" -lt "$most" ]; do
        sleep 1
        waited=$((waited + 1))
    done
    echo "$waited"
}

report_end() {
    if [ "$1" -lt 45 ]; then
        echo "ok    end: after SIGTERM and less than $(($1 + 1)) s"
    else
        echo "FAIL  end: still there $1 s after SIGTERM"
        return 1
    fi
}

# shellcheck disable=SC2329 # passed by name
local_runs() { [ -d "/proc/$server_pid" ] && ! grep -q "^State:[[:space:]]*Z" "/proc/$server_pid/status"; } # a zombie has ended
# shellcheck disable=SC2329 # passed by name
container_runs() { [ "$(docker inspect --format '{{.State.Running}}' "$container" 2>/dev/null)" = true ]; }

smoke_local() {
    ports=$(python3 -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held))')
    # shellcheck disable=SC2086 # three numbers
    set -- $ports
    AUTOGLM_ARTIFACT=$artifact PYTHONDONTWRITEBYTECODE=1 "${TRITONSERVER:-tritonserver}" \
        --model-repository="$repository" --model-control-mode=explicit --load-model=autoglm \
        --http-address=127.0.0.1 --http-port="$1" --grpc-address=127.0.0.1 --grpc-port="$2" \
        --metrics-address=127.0.0.1 --metrics-port="$3" >"$log" 2>&1 &
    server_pid=$!
    echo "tritonserver $(python3 -c 'import numpy; print("with numpy", numpy.__version__)' 2>/dev/null || echo "without numpy")"
    if ! wait_ready "http://127.0.0.1:$1/v2/health/ready" local_runs; then
        echo "FAIL  start: $(grep -E '^E[0-9]|Error|error' "$log" | tail -n 1 || true)"
        end_all
        return 1
    fi
    ended=0
    python3 "$here/smoke.py" --http "http://127.0.0.1:$1" --metrics "http://127.0.0.1:$3/metrics" --reload || ended=1
    if local_runs; then
        kill -TERM "$server_pid"
        report_end "$(wait_end 45 local_runs)" || ended=1
    fi
    end_all
    return $ended
}

smoke_container() {
    container=autoglm-smoke-$$
    echo "$image:$1-py3"
    # shellcheck disable=SC2016,SC2086 # the container expands it; flags are words
    docker run --detach --name "$container" --shm-size 1g --ulimit stack=1073741824 --init \
        --publish 127.0.0.1::8000 --publish 127.0.0.1::8002 \
        --volume "$repository:/model_repository:ro" --volume "$artifact:/artifact:ro" --volume "$here:/deploy:ro" \
        --env AUTOGLM_ARTIFACT=/artifact --env PYTHONDONTWRITEBYTECODE=1 --env PIP_BREAK_SYSTEM_PACKAGES=1 \
        --env "AUTOGLM_INSTALL=$install" $docker_flags "$image:$1-py3" sh -c '
            set -e
            python3 -m pip install --quiet --require-hashes --requirement /deploy/requirements/requirements.lock
            [ -z "$AUTOGLM_INSTALL" ] || python3 -m pip install --quiet --constraint /deploy/requirements/requirements.txt $AUTOGLM_INSTALL
            exec tritonserver --model-repository=/model_repository --model-control-mode=explicit --load-model=autoglm
        ' >/dev/null || { echo "FAIL  start: docker run failed" && container='' && return 1; }
    http=$(docker port "$container" 8000/tcp | head -n 1) metrics=$(docker port "$container" 8002/tcp | head -n 1)
    if ! wait_ready "http://$http/v2/health/ready" container_runs; then
        echo "FAIL  start: $(docker logs "$container" 2>&1 | tail -n 1)"
        end_all
        return 1
    fi
    docker exec "$container" python3 -c 'import sys, numpy
print("      python", sys.version.split()[0], "numpy", numpy.__version__)'
    ended=0
    python3 "$here/smoke.py" --http "http://$http" --metrics "http://$metrics/metrics" --reload || ended=1
    if container_runs; then
        docker kill --signal TERM "$container" >/dev/null
        report_end "$(wait_end 45 container_runs)" || ended=1
    fi
    end_all
    return $ended
}

failed=0
if [ -n "$local_server" ]; then
    smoke_local || failed=1
else
    command -v docker >/dev/null || fail "docker is not installed; --local uses a tritonserver of this machine"
    for tag in ${tags:-$default_tags}; do
        smoke_container "$tag" || failed=1
    done
fi
exit $failed
