package main

import (
	"strings"
	"testing"
)

func TestTokenForms(t *testing.T) {
	ca := []byte("certificate")
	for text, want := range map[string]token{
		"secret":                      {secret: "secret"},
		" secret\n":                   {secret: "secret"},
		"K10secret":                   {secret: "K10secret"},
		longToken(ca, "node", "a:b"):  {user: "node", secret: "a:b", caHash: caHash(ca)},
		longToken(ca, "server", "s3"): {user: "server", secret: "s3", caHash: caHash(ca)},
	} {
		got, err := parseToken(text)
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
}

func TestTokenRefusals(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for _, text := range []string{"", "  ", "K10abc::node:x", "K10" + hash + "::node:", "K10" + hash + "::x", "K10" + hash + "::admin:x", "x::node:y"} {
		if got, err := parseToken(text); err == nil {
			t.Errorf("%q was accepted as %+v", text, got)
		}
	}
}
