#!/bin/sh
# build.sh OUTPUT: builds the lab's K3s stand-in, with containerd, runc and the CNI plugins inside.
# Needs Go 1.26, zstd, and Debian's runc and containernetworking-plugins.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: build.sh OUTPUT" >&2
    exit 2
fi
output=$(realpath -m "$1")
here=$(dirname "$(realpath "$0")")
cd "$here"
mkdir -p "$(dirname "$output")"

kubernetes=v1.36.3
version=$kubernetes+k3s1
containerd=2.4.2
export CGO_ENABLED=0

# The content of this directory's Go files names the build, where a release names its commit.
commit() {
    find . \( -name '*.go' -o -name 'go.*' -o -name '*.yaml' \) ! -name '*_test.go' | sort | xargs cat | sha256sum | cut -c1-8
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

payload
flags="-X main.version=$version -X main.commit=$(commit)"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags="$flags -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=36"
    flags="$flags -X $package.gitTreeState=clean -X $package.buildDate=2026-01-01T00:00:00Z"
done
# Replaced only when the build succeeds.
go build -trimpath -ldflags "-s -w $flags" -o "$output.new" .
mv -f "$output.new" "$output"
