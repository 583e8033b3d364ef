#!/bin/sh
# Builds the lab's K3s stand-in and two small programs for its images.
#   build.sh OUTPUT             the k3s binary, with containerd, runc and the CNI plugins inside
#   build.sh OUTPUT coredns     CoreDNS
#   build.sh OUTPUT pause       the pause program
# Needs Go 1.26, zstd, and Debian's runc and containernetworking-plugins.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: build.sh OUTPUT [k3s|coredns|pause]" >&2
    exit 2
fi
output=$(realpath -m "$1")
what=${2:-k3s}
here=$(dirname "$(realpath "$0")")
cd "$here"
mkdir -p "$(dirname "$output")"

kubernetes=v1.36.3
version=$kubernetes+k3s1
containerd=2.4.2
export CGO_ENABLED=0

# build OUTPUT LINKER-FLAGS PACKAGE... : replaces OUTPUT only when the build succeeds
build() {
    target=$1
    flags=$2
    shift 2
    go build -trimpath -ldflags "-s -w $flags" -o "$target.new" "$@"
    mv -f "$target.new" "$target"
}

# The content of this directory's Go files names the build, where a release names its commit.
commit() {
    find . -name '*.go' -o -name 'go.*' -o -name '*.yaml' | sort | xargs cat | sha256sum | cut -c1-8
}

payload() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    for file in /usr/sbin/runc /usr/lib/cni/bridge /usr/lib/cni/host-local /usr/lib/cni/loopback /usr/lib/cni/portmap; do
        if [ ! -x "$file" ]; then
            echo "build.sh: $file is missing: apt-get install runc containernetworking-plugins" >&2
            exit 1
        fi
        cp "$file" "$work/"
    done
    (
        cd containerd
        for name in containerd containerd-shim-runc-v2 ctr; do
            go build -trimpath -tags "no_btrfs no_devmapper no_zfs" \
                -ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=$containerd" \
                -o "$work/$name" "github.com/containerd/containerd/v2/cmd/$name"
        done
    )
    tar -C "$work" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - . | zstd -q -10 -T0 -f -o payload/runtime.tar.zst
}

case $what in
k3s)
    payload
    flags="-X main.version=$version -X main.commit=$(commit)"
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags="$flags -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=36"
        flags="$flags -X $package.gitTreeState=clean -X $package.buildDate=2026-01-01T00:00:00Z"
    done
    build "$output" "$flags" .
    ;;
coredns) build "$output" "" ./cmd/coredns ;;
pause) build "$output" "" ./pause ;;
*)
    echo "build.sh: cannot build \"$what\": it is k3s, coredns or pause" >&2
    exit 2
    ;;
esac
