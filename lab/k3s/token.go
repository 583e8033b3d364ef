package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
)

// Users of the join endpoints.
const (
	userServer = "server"
	userNode   = "node"
)

// token is a cluster secret in any form that K3s accepts: "SECRET" or "K10<CA hash>::USER:SECRET".
type token struct {
	user   string // empty in the short form
	secret string
	caHash string // empty in the short form
}

func parseToken(s string) (token, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return token{}, errors.New("the token is empty")
	}
	long, ok := strings.CutPrefix(s, "K10")
	if !ok || !strings.Contains(long, "::") {
		if strings.Contains(s, "::") {
			return token{}, errors.New("the token holds \"::\" but does not begin with K10")
		}
		return token{secret: s}, nil
	}
	hash, rest, _ := strings.Cut(long, "::")
	if b, err := hex.DecodeString(hash); err != nil || len(b) != sha256.Size {
		return token{}, errors.New("the token's CA hash must be 64 hexadecimal digits")
	}
	user, secret, ok := strings.Cut(rest, ":")
	if !ok || secret == "" {
		return token{}, errors.New("the token must end in ::USER:SECRET")
	}
	if user != userServer && user != userNode {
		return token{}, errors.New("the token's user must be server or node")
	}
	return token{user: user, secret: secret, caHash: strings.ToLower(hash)}, nil
}

// caHash is the hash by which a long token names the cluster's server CA.
func caHash(ca []byte) string {
	h := sha256.Sum256(ca)
	return hex.EncodeToString(h[:])
}

func longToken(ca []byte, user, secret string) string {
	return "K10" + caHash(ca) + "::" + user + ":" + secret
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails: the runtime ends the process first
	return hex.EncodeToString(b)
}
