package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestSealedDataOpensOnlyWithItsToken(t *testing.T) {
	plain := []byte("the cluster's keys")
	box, err := seal("right", plain)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(box, plain) {
		t.Error("the sealed data shows the plain text")
	}
	if got, err := unseal("right", box); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := unseal("wrong", box); err == nil {
		t.Error("a wrong token opened the data")
	}
	for _, n := range []int{0, 10, saltSize + 3} {
		if _, err := unseal("right", box[:n]); err == nil {
			t.Errorf("%d bytes of it were accepted", n)
		}
	}
}

func TestBootstrapDataIsComplete(t *testing.T) {
	b, err := newBootstrapData()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range authorities {
		if _, err := newAuthority(b[name+".crt"], b[name+".key"]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseKey(b[serviceKey]); err != nil {
		t.Error(err)
	}
	if !strings.Contains(string(b[encryptionKey]), `"aescbc"`) {
		t.Errorf("encryption configuration: %s", b[encryptionKey])
	}
}
