package main

import (
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"
)

func TestLeafsAreRenewedWhenNeeded(t *testing.T) {
	cert, key, err := newCA("server-ca")
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAuthority(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "serving")
	l := leaf{commonName: "kube-apiserver", usage: x509.ExtKeyUsageServerAuth, names: []string{"10.0.145.110", "kubernetes"}}
	serial := func() string {
		t.Helper()
		if err := a.ensure(path, l); err != nil {
			t.Fatal(err)
		}
		c, _, err := readPair(path)
		if err != nil {
			t.Fatal(err)
		}
		return c.SerialNumber.String()
	}
	first := serial()
	if serial() != first {
		t.Error("a fit certificate was made anew")
	}
	c, _, err := readPair(path)
	if err != nil {
		t.Fatal(err)
	}
	if !a.fits(c, l, time.Now().AddDate(0, 0, 270)) || a.fits(c, l, time.Now().AddDate(0, 0, 280)) {
		t.Error("it must be renewed when less than 90 days are left, and not before")
	}
	l.names = append(l.names, "10.0.145.116")
	if serial() == first {
		t.Error("a new name did not renew it")
	}
}
