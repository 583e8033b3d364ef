package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// bootstrapData is what all servers share and no agent sees: file name to content.
type bootstrapData map[string][]byte

const (
	bootstrapKey  = "/bootstrap/k3s"
	serviceKey    = "service.key"
	encryptionKey = "encryption-config.json"

	saltSize       = 16
	sealIterations = 4096
)

var authorities = []string{"server-ca", "client-ca", "request-header-ca"}

func newBootstrapData() (bootstrapData, error) {
	b := bootstrapData{}
	for _, name := range authorities {
		cert, key, err := newCA(name)
		if err != nil {
			return nil, err
		}
		b[name+".crt"], b[name+".key"] = cert, key
	}
	key, err := newSigningKey()
	if err != nil {
		return nil, err
	}
	b[serviceKey] = key
	b[encryptionKey], err = newEncryptionConfig()
	return b, err
}

func newEncryptionConfig() ([]byte, error) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	type object = map[string]any
	return json.Marshal(object{
		"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1",
		"resources": []object{{
			"resources": []string{"secrets"},
			"providers": []object{
				{"aescbc": object{"keys": []object{{"name": "aescbckey", "secret": base64.StdEncoding.EncodeToString(secret)}}}},
				{"identity": object{}},
			},
		}},
	})
}

// write lays the data down where the API server and the signing of certificates read it.
func (b bootstrapData) write() error {
	for name, body := range b {
		dir, mode := serverTLS, os.FileMode(0o600)
		switch {
		case name == encryptionKey:
			dir = serverCred
		case strings.HasSuffix(name, ".crt"):
			mode = 0o644
		}
		if err := writeFile(filepath.Join(dir, name), body, mode); err != nil {
			return err
		}
	}
	return nil
}

func sealCipher(secret string, salt []byte) (cipher.AEAD, error) {
	k, err := pbkdf2.Key(sha256.New, secret, salt, sealIterations, 32)
	if err != nil {
		return nil, err
	}
	c, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(c)
}

// seal encrypts with a key derived from the token: salt, nonce, ciphertext.
func seal(secret string, plain []byte) ([]byte, error) {
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	g, err := sealCipher(secret, salt)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, g.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return append(salt, g.Seal(nonce, nonce, plain, nil)...), nil
}

func unseal(secret string, box []byte) ([]byte, error) {
	if len(box) < saltSize {
		return nil, errors.New("the sealed data is cut short")
	}
	g, err := sealCipher(secret, box[:saltSize])
	if err != nil {
		return nil, err
	}
	box = box[saltSize:]
	if len(box) < g.NonceSize() {
		return nil, errors.New("the sealed data is cut short")
	}
	return g.Open(nil, box[:g.NonceSize()], box[g.NonceSize():], nil)
}

// errOtherToken means that the cluster was made with a token that is not ours.
var errOtherToken = errors.New("bootstrap data already found and encrypted with different token: " +
	"set token in " + configFile + " to the one that this cluster was made with")

// loadBootstrapData fetches the cluster's shared data from the datastore, or makes and stores it when
// there is none. Of servers that do so at the same time one wins and all use what it stored.
func loadBootstrapData(ctx context.Context, secret string) (bootstrapData, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + kineSocket}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	quiet := newRepeatFilter(15 * time.Second)
	for {
		box, err := fetchOrStore(ctx, c, secret)
		if err == nil {
			plain, err := unseal(secret, box)
			if err != nil {
				return nil, errOtherToken
			}
			b := bootstrapData{}
			if err := json.Unmarshal(plain, &b); err != nil {
				return nil, fmt.Errorf("the bootstrap data in the datastore is damaged: %w", err)
			}
			return b, nil
		}
		if quiet.pass(err.Error()) {
			slog.Warn("the datastore does not answer yet, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func fetchOrStore(ctx context.Context, c *clientv3.Client, secret string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	found, err := c.Get(ctx, bootstrapKey)
	if err != nil {
		return nil, err
	}
	if len(found.Kvs) > 0 {
		return found.Kvs[0].Value, nil
	}
	data, err := newBootstrapData()
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(data)
	if err != nil {
		return nil, err
	}
	box, err := seal(secret, plain)
	if err != nil {
		return nil, err
	}
	_, err = c.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(bootstrapKey), "=", 0)).
		Then(clientv3.OpPut(bootstrapKey, string(box))).
		Else(clientv3.OpGet(bootstrapKey)).
		Commit()
	if err != nil {
		return nil, err
	}
	// Read back: ours or that of a server which was quicker.
	found, err = c.Get(ctx, bootstrapKey)
	if err != nil {
		return nil, err
	}
	if len(found.Kvs) == 0 {
		return nil, errors.New("the bootstrap data is not in the datastore although it was just stored")
	}
	return found.Kvs[0].Value, nil
}
