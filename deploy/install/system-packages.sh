#!/bin/sh
# Installs the Debian/Ubuntu packages that the server needs and this machine lacks; does nothing where all is there.
# With the argument `test` also what only the tests need: redis-server, for the Redis tier of the response cache; curl and
# chromium, which ask the gateway and open its page. With `clients`: compilers and gRPC of C++, Java and Go, for docs/clients.
# libpython: tritonserver's Python backend links it. venv: makes .venv. g++: compiles the native CPU kernels.
set -eu
python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
missing=""

library_found() {
    ldconfig -p | grep -q "libpython$version.so.1.0" ||
        "$python" -c "import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_config_var('LIBDIR'), 'libpython$version.so.1.0')))"
}

library_found || missing="$missing libpython$version"
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python$version-venv"
command -v "${CXX:-g++}" >/dev/null || command -v clang++ >/dev/null || missing="$missing g++"
[ "${1:-}" != test ] || command -v redis-server >/dev/null || missing="$missing redis-server"
[ "${1:-}" != test ] || command -v curl >/dev/null || missing="$missing curl"
[ "${1:-}" != test ] || command -v chromium >/dev/null || missing="$missing chromium"

# Each with the file that tells that it is there.
needs_file() {
    [ -e "$2" ] || missing="$missing $1"
}

if [ "${1:-}" = clients ]; then
    command -v javac >/dev/null || missing="$missing default-jdk-headless"
    needs_file pkg-config /usr/bin/pkg-config
    needs_file protobuf-compiler-grpc /usr/bin/grpc_cpp_plugin
    needs_file libgrpc++-dev /usr/include/grpcpp/grpcpp.h
    needs_file libprotobuf-dev /usr/include/google/protobuf/message.h
    needs_file protobuf-compiler-grpc-java-plugin /usr/bin/grpc_java_plugin
    needs_file libgrpc-java /usr/share/java/grpc-api.jar
    needs_file libprotobuf-java /usr/share/java/protobuf.jar
    needs_file libperfmark-java /usr/share/java/perfmark-api.jar
    needs_file libnetty-java /usr/share/java/netty-codec-http2.jar
    needs_file golang-go /usr/bin/go
    needs_file golang-goprotobuf-dev /usr/bin/protoc-gen-go
    needs_file protoc-gen-go-grpc /usr/bin/protoc-gen-go-grpc
    needs_file golang-google-grpc-dev /usr/share/gocode/src/google.golang.org/grpc
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then sudo=""; elif command -v sudo >/dev/null; then sudo=sudo; else
    echo "these packages are missing and need root to install: apt-get install$missing" >&2
    exit 1
fi
if [ -n "$sudo" ]; then
    echo "missing system packages are installed with sudo:$missing"
    sudo true # asks for the password now, not in the log
fi
step() { "$python" "$(dirname "$0")/step.py" --log "${LOG:-install.log}" "$@"; }
step --about 10 "reading the lists of system packages" -- $sudo apt-get update
# shellcheck disable=SC2086  # the list is meant to split
step --about 30 "installing missing system packages:$missing" -- $sudo apt-get install --yes --no-install-recommends $missing
