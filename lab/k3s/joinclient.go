package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

var errToken = errors.New("token is not valid")

// joiner fetches what a node needs from a server and lays it down below the agent directory.
type joiner struct {
	url      string // where the API is reached from this machine
	token    token
	node     string
	address  string
	password string
	client   *http.Client
}

// joinCluster tries until it succeeds or the context ends, and says why not.
func joinCluster(ctx context.Context, url string, t token, node, address string) (*joinSettings, error) {
	password, err := nodePassword()
	if err != nil {
		return nil, err
	}
	if t.user == "" {
		t.user = userNode
	}
	j := &joiner{url: url, token: t, node: node, address: address, password: password}
	quiet := newRepeatFilter(30 * time.Second)
	for {
		s, err := j.try(ctx)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if quiet.pass(err.Error()) {
			slog.Error("failed to join the cluster, trying again", "server", url, "error", err)
		}
		if pause(ctx.Done(), time.Second) {
			return nil, ctx.Err()
		}
	}
}

func (j *joiner) try(ctx context.Context) (*joinSettings, error) {
	loose := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		// The CA is not known yet: the token's hash checks what comes, as in K3s.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	ca, err := get(ctx, loose, j.url+pathCACerts, nil)
	if err != nil {
		return nil, err
	}
	if want, got := j.token.caHash, caHash(ca); want != "" && want != got {
		return nil, fmt.Errorf("token is not valid: token CA hash does not match the Cluster CA certificate hash: %s != %s", want, got)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the server sent no CA certificate")
	}
	j.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true,
	}}
	body, err := j.do(ctx, http.MethodGet, pathConfig, nil)
	if err != nil {
		return nil, err
	}
	s := &joinSettings{}
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("the server's settings cannot be read: %w", err)
	}
	clientCA, err := j.do(ctx, http.MethodGet, pathClientCA, nil)
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(agentDir, "server-ca.crt"), ca, 0o644); err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(agentDir, "client-ca.crt"), clientCA, 0o644); err != nil {
		return nil, err
	}
	for _, path := range []string{pathServing, pathKubelet, pathKubeProxy, pathController} {
		if err := j.certificate(ctx, path); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (j *joiner) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	return request(ctx, j.client, method, j.url+path, body, func(r *http.Request) {
		r.SetBasicAuth(j.token.user, j.token.secret)
		r.Header.Set(headerNode, j.node)
		r.Header.Set(headerAddress, j.address)
		r.Header.Set(headerPassword, j.password)
	})
}

// certificate has the server sign a key that never leaves this machine.
func (j *joiner) certificate(ctx context.Context, path string) error {
	base := filepath.Join(agentDir, strings.TrimSuffix(filepath.Base(path), ".crt"))
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return err
	}
	cert, err := j.do(ctx, http.MethodPost, path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	if err != nil {
		return err
	}
	key, err := keyPEM(k)
	if err != nil {
		return err
	}
	if err := writeFile(base+".key", key, 0o600); err != nil {
		return err
	}
	return writeFile(base+".crt", cert, 0o644)
}

func get(ctx context.Context, c *http.Client, url string, prepare func(*http.Request)) ([]byte, error) {
	return request(ctx, c, http.MethodGet, url, nil, prepare)
}

func request(ctx context.Context, c *http.Client, method, url string, body []byte, prepare func(*http.Request)) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if prepare != nil {
		prepare(r)
	}
	a, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(a.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	switch {
	case a.StatusCode == http.StatusOK:
		return answer, nil
	case a.StatusCode == http.StatusUnauthorized:
		return nil, fmt.Errorf("%w: %s answers %s", errToken, url, a.Status)
	default:
		return nil, fmt.Errorf("%s answers %s: %s", url, a.Status, bytes.TrimSpace(answer))
	}
}

// nodePassword returns this machine's own password, made at its first start.
func nodePassword() (string, error) {
	b, err := os.ReadFile(nodePasswordFile)
	if err == nil && len(bytes.TrimSpace(b)) > 0 {
		return string(bytes.TrimSpace(b)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	p := randomHex(16)
	return p, writeFile(nodePasswordFile, []byte(p+"\n"), 0o600)
}
