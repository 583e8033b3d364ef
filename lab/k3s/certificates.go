package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	caYears        = 10
	leafLifetime   = 365 * 24 * time.Hour
	renewRemaining = 90 * 24 * time.Hour
)

func keyPEM(k crypto.Signer) ([]byte, error) {
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func parseCert(b []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("holds no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("holds no PEM key")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, errors.New("holds a key that cannot sign")
	}
	return signer, nil
}

func serialNumber() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
}

// newCA makes a self-signed certificate authority.
func newCA(name string) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: fmt.Sprintf("k3s-%s@%d", name, now.Unix())},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.AddDate(caYears, 0, 0),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return nil, nil, err
	}
	key, err = keyPEM(k)
	return certPEM(der), key, err
}

// newSigningKey makes the key that signs service account tokens.
func newSigningKey() ([]byte, error) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	return keyPEM(k)
}

// authority signs leaf certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(cert, key []byte) (*authority, error) {
	c, err := parseCert(cert)
	if err != nil {
		return nil, err
	}
	k, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	return &authority{c, k}, nil
}

func readAuthority(name string) (*authority, error) {
	cert, err := os.ReadFile(filepath.Join(serverTLS, name+".crt"))
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(serverTLS, name+".key"))
	if err != nil {
		return nil, err
	}
	a, err := newAuthority(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s/%s: %w", serverTLS, name, err)
	}
	return a, nil
}

// leaf is what a certificate is to say.
type leaf struct {
	commonName string
	groups     []string
	usage      x509.ExtKeyUsage
	names      []string // DNS names and addresses
}

func (l leaf) split() (ips []net.IP, dns []string) {
	for _, n := range l.names {
		if ip := net.ParseIP(n); ip != nil {
			ips = append(ips, ip)
		} else if n != "" {
			dns = append(dns, n)
		}
	}
	return ips, dns
}

// sign makes a certificate for a public key, the authority's own certificate after it.
func (a *authority) sign(l leaf, public crypto.PublicKey) ([]byte, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	ips, dns := l.split()
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: l.commonName, Organization: l.groups},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(leafLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{l.usage},
		IPAddresses: ips, DNSNames: dns,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, public, a.key)
	if err != nil {
		return nil, err
	}
	return append(certPEM(der), certPEM(a.cert.Raw)...), nil
}

// fits tells whether a certificate still serves: ours, says what is wanted, and is not near its end.
func (a *authority) fits(c *x509.Certificate, l leaf, now time.Time) bool {
	if c.CheckSignatureFrom(a.cert) != nil || c.NotAfter.Sub(now) < renewRemaining || c.NotBefore.After(now) {
		return false
	}
	if c.Subject.CommonName != l.commonName || !slices.Equal(c.Subject.Organization, l.groups) || !slices.Contains(c.ExtKeyUsage, l.usage) {
		return false
	}
	ips, dns := l.split()
	for _, want := range ips {
		if !slices.ContainsFunc(c.IPAddresses, want.Equal) {
			return false
		}
	}
	for _, want := range dns {
		if !slices.Contains(c.DNSNames, want) {
			return false
		}
	}
	return true
}

// ensure keeps PATH.crt and PATH.key fit, making both anew when they are not.
func (a *authority) ensure(path string, l leaf) error {
	if cert, key, err := readPair(path); err == nil && a.fits(cert, l, time.Now()) && publicEqual(cert.PublicKey, key.Public()) {
		return nil
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert, err := a.sign(l, k.Public())
	if err != nil {
		return fmt.Errorf("cannot sign %s.crt: %w", path, err)
	}
	key, err := keyPEM(k)
	if err != nil {
		return err
	}
	if err := writeFile(path+".key", key, 0o600); err != nil {
		return err
	}
	return writeFile(path+".crt", cert, 0o644)
}

func readPair(path string) (*x509.Certificate, crypto.Signer, error) {
	cb, err := os.ReadFile(path + ".crt")
	if err != nil {
		return nil, nil, err
	}
	kb, err := os.ReadFile(path + ".key")
	if err != nil {
		return nil, nil, err
	}
	cert, err := parseCert(cb)
	if err != nil {
		return nil, nil, err
	}
	key, err := parseKey(kb)
	return cert, key, err
}

func publicEqual(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// signRequest reads a PEM certificate request and signs its key for what the caller decides.
func (a *authority) signRequest(request []byte, l leaf) ([]byte, error) {
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("the request holds no PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	return a.sign(l, csr.PublicKey)
}

// writeFile replaces a file at once, so that no reader ever sees half of it, with the mode from its first byte on.
func writeFile(path string, body []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err == nil {
		err = f.Chmod(mode)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}
