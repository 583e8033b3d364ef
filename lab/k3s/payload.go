package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// payload holds runtime.tar.zst, the container runtime and the CNI plugins, which build.sh puts there.
//
//go:embed payload
var payload embed.FS

const payloadName = "payload/runtime.tar.zst"

// unpackRuntime lays the container runtime below the data directory, once per content, and returns its directory.
func unpackRuntime() (string, error) {
	packed, err := payload.ReadFile(payloadName)
	if err != nil {
		return "", errors.New("this binary was built without a container runtime: build it with build.sh")
	}
	hash := sha256.Sum256(packed)
	root := filepath.Join(dataDir, "data")
	dir := filepath.Join(root, hex.EncodeToString(hash[:]))
	bin := filepath.Join(dir, "bin")
	if _, err := os.Stat(bin); err != nil {
		if err := os.MkdirAll(root, 0o755); err != nil {
			return "", err
		}
		temporary, err := os.MkdirTemp(root, ".unpack-")
		if err != nil {
			return "", err
		}
		defer func() { _ = os.RemoveAll(temporary) }()
		if err := unpack(packed, filepath.Join(temporary, "bin")); err != nil {
			return "", fmt.Errorf("cannot unpack the container runtime below %s: %w", root, err)
		}
		if err := os.Chmod(temporary, 0o755); err != nil {
			return "", err
		}
		if err := os.Rename(temporary, dir); err != nil {
			return "", err
		}
	}
	current := filepath.Join(root, "current")
	if target, err := os.Readlink(current); err != nil || target != dir {
		next := current + ".new"
		_ = os.Remove(next)
		if err := os.Symlink(dir, next); err != nil {
			return "", err
		}
		if err := os.Rename(next, current); err != nil {
			return "", err
		}
	}
	return bin, nil
}

func unpack(packed []byte, into string) error {
	z, err := zstd.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	defer z.Close()
	if err := os.MkdirAll(into, 0o755); err != nil {
		return err
	}
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		f, err := os.OpenFile(filepath.Join(into, filepath.Base(h.Name)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		if e := f.Close(); err == nil {
			err = e
		}
		if err != nil {
			return err
		}
	}
}
